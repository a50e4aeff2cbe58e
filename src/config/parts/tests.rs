//! Backends of several files, checked as one, each mistake in its own file.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::super::{Config, Mistakes, load};
use super::*;

const HEAD: &str = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
routing:
  backends_from: backends.d/
";
const OWN: &str = "  backends:
    - {name: server1, ca: one.pem, imap: {address: '192.0.2.1:993', tls: implicit}}
";

fn backend(name: &str) -> String {
    format!("name: {name}\nca: ca/{name}.pem\nimap: {{address: '{name}.example.com:993', tls: implicit}}\n")
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("- {}\n", backend(name).trim_end().replace('\n', "\n  "))).collect()
}

struct Setup(TempDir);

impl Setup {
    /// With these files in the folder.
    fn new(config: &str, files: &[(&str, &str)]) -> Self {
        let setup = Self(tempfile::tempdir().unwrap());
        setup.write("config.yaml", config);
        fs::create_dir(setup.path("backends.d")).unwrap();
        files.iter().for_each(|(name, text)| setup.write(&format!("backends.d/{name}"), text));
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn load(&self) -> Result<Config, Mistakes> {
        load(&self.path("config.yaml"))
    }

    fn names(&self) -> Vec<String> {
        self.load().unwrap().routing.backends.into_iter().map(|backend| backend.name).collect()
    }

    /// Every mistake, with paths below the folder of the config file.
    fn mistakes(&self) -> Vec<String> {
        let folder = format!("{}/", self.0.path().display());
        let problems = self.load().unwrap_err().problems;
        problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }

    fn digest(&self) -> TextDigest {
        let digest = TextDigest::of_file(&self.path("config.yaml")).unwrap();
        if let Ok(config) = self.load() {
            assert_eq!(config.digest, digest);
        }
        digest
    }
}

#[test]
fn backends_of_the_files_follow_those_of_the_config_file_by_name() {
    let files = [("20.yaml", list(&["d", "c"])), ("10-b.yaml", backend("b")), ("30.yaml", "[]".into())];
    let ignored =
        [("x.yaml~", "}"), (".hidden.yaml", "}"), ("README", "}"), ("yaml", "}")].map(|(n, t)| (n, t.to_owned()));
    let all: Vec<_> = files.iter().chain(&ignored).map(|(name, text): &(&str, String)| (*name, &**text)).collect();
    let setup = Setup::new(&format!("{HEAD}{OWN}"), &all);
    assert_eq!(setup.names(), ["server1", "b", "d", "c"]);
    let config = setup.load().unwrap();
    assert_eq!(config.warnings, []);
    // Relative to the config file, as everywhere.
    assert_eq!(config.routing.backends[1].ca, Some(setup.path("ca/b.pem")));
    // What is found later is placed in the right file, too.
    let found = config.problem("routing.backends[2].ca", "x");
    assert_eq!((found.file, found.line, &*found.key), (setup.path("backends.d/20.yaml"), Some(2), "[0].ca"));
    let found = config.problem("routing.backends[1].ca", "x");
    assert_eq!((found.file, found.line, &*found.key), (setup.path("backends.d/10-b.yaml"), Some(2), "ca"));
    let found = config.problem("routing.backends[0].ca", "x");
    assert_eq!((found.file, found.line), (setup.path("config.yaml"), Some(7)));
    let without_own = Setup::new(HEAD, &[("b.yaml", &backend("b"))]);
    assert_eq!(without_own.names(), ["b"]);
    let empty_own = Setup::new(&format!("{HEAD}  backends: []\n"), &[("b.yaml", &backend("b"))]);
    assert_eq!(empty_own.names(), ["b"]);
    setup.write("backends.d/other.yml", backend("e"));
    let [warning] = <[Problem; 1]>::try_from(setup.load().unwrap().warnings).unwrap();
    assert!(warning.key == "routing.backends_from" && warning.message.contains("other.yml is not read"), "{warning}");
    assert_eq!(warning.line, Some(5));
}

#[test]
fn folder_may_be_empty_only_if_there_are_other_backends() {
    assert_eq!(Setup::new(&format!("{HEAD}{OWN}"), &[]).names(), ["server1"]);
    let empty = Setup::new(HEAD, &[("a.yaml", "[]")]);
    assert_eq!(
        empty.mistakes(),
        ["config.yaml:5: routing.backends_from: no file there has a backend, and there is no `backends`: add one"]
    );
    let missing = Setup::new(&format!("{HEAD}{OWN}"), &[]);
    fs::remove_dir(missing.path("backends.d")).unwrap();
    let [mistake] = <[String; 1]>::try_from(missing.mistakes()).unwrap();
    assert!(mistake.starts_with("config.yaml:5: routing.backends_from: backends.d"), "{mistake}");
    assert!(mistake.contains("cannot be read: No such file or directory"), "{mistake}");
}

#[test]
fn mistakes_name_file_line_and_key_of_that_file() {
    let both = format!("{HEAD}{OWN}    - {{name: b, imap: {{address: '192.0.2.9:993', tls: implicit}}}}\n");
    let files = [
        ("10.yaml", list(&["a", "b"])),
        ("20.yaml", format!("# one\n{}no_such: 1\n", backend("c"))),
        ("30.yaml", list(&["a", "server1.example.com"]).replace("tls: implicit", "tls: maybe")),
    ];
    let setup = Setup::new(&both, &files.each_ref().map(|(name, text)| (*name, &**text)));
    let expected = [
        (
            "backends.d/10.yaml:4: [1].name: `b` is already used by routing.backends[1].name in line 8 of config.yaml: remove one",
            true,
        ),
        ("backends.d/10.yaml:4: [1].name: `b` is already used", false),
        ("backends.d/20.yaml:5: no_such: unknown key", false),
        (
            "backends.d/30.yaml:1: [0].name: `a` is already used by [0].name in line 1 of backends.d/10.yaml: remove one",
            true,
        ),
        ("backends.d/30.yaml:1: [0].name: `a` is already used", false),
        ("backends.d/30.yaml:3: [0].imap.tls: write one of", false),
        ("backends.d/30.yaml:6: [1].imap.tls: write one of", false),
    ];
    let found = setup.mistakes();
    for (words, is_whole) in expected {
        let has = |one: &String| if is_whole { one == words } else { one.starts_with(words) };
        assert!(found.iter().any(has), "{words}\n{found:#?}");
    }
    let default = Setup::new(&HEAD.replace("routing:", "routing:\n  default: d"), &[("a.yaml", &list(&["a", "b"]))]);
    assert_eq!(default.mistakes(), ["config.yaml:5: routing.default: no backend has this name; there are: a, b"]);
}

#[test]
fn file_that_is_no_backends_is_refused() {
    for (text, words) in [
        ("", "backends.d/a.yaml: expected backends as `routing.backends` has them"),
        ("# nothing yet\n", "backends.d/a.yaml: expected backends"),
        ("text", "backends.d/a.yaml: expected backends"),
        ("- name: [a", "backends.d/a.yaml:"),
        ("name: a\nname: b\n", "backends.d/a.yaml:2: name: given twice, first in line 1: keep one"),
        ("- 3\n", "backends.d/a.yaml:1: [0]: found a number, but expected keys"),
        ("{}", "backends.d/a.yaml: name: missing"),
        ("---\n[]\n---\n[]\n", "backends.d/a.yaml: more than one YAML document"),
        ("routing: {backends: []}\n", "backends.d/a.yaml:1: routing: unknown key"),
    ] {
        let found = Setup::new(&format!("{HEAD}{OWN}"), &[("a.yaml", text)]).mistakes();
        let (file, words) = words.split_once(' ').unwrap_or((words, ""));
        let is_it = |one: &String| one.starts_with(file.trim_end_matches(':')) && one.contains(words);
        assert!(found.iter().any(is_it), "{text:?}: {found:#?}");
    }
    let binary = Setup::new(&format!("{HEAD}{OWN}"), &[]);
    binary.write("backends.d/a.yaml", b"\xff\xfe\xfa");
    assert!(binary.mistakes()[0].starts_with("backends.d/a.yaml: "), "{:?}", binary.mistakes());
    let folder = Setup::new(&format!("{HEAD}{OWN}"), &[]);
    fs::create_dir(folder.path("backends.d/a.yaml")).unwrap();
    symlink("nowhere", folder.path("backends.d/b.yaml")).unwrap();
    assert!(folder.mistakes()[0].starts_with("backends.d/a.yaml: cannot be read"), "{:?}", folder.mistakes());
    fs::remove_dir(folder.path("backends.d/a.yaml")).unwrap();
    assert!(folder.mistakes()[0].starts_with("backends.d/b.yaml: cannot be read: No such file"));
    for value in ["[a]", "3", "''", "~/backends.d", "$HOME/backends.d"] {
        let wrong = Setup::new(&format!("{HEAD}{OWN}").replace("backends.d/", value), &[("a.yaml", "}")]);
        assert!(wrong.mistakes()[0].starts_with("config.yaml:5: routing.backends_from: "), "{:?}", wrong.mistakes());
    }
}

#[test]
fn number_and_size_are_bounded() {
    let setup = Setup::new(&format!("{HEAD}{OWN}"), &[]);
    let padding = "#".repeat(600_000);
    setup.write("backends.d/a.yaml", format!("{}{padding}", backend("a")));
    assert_eq!(setup.names(), ["server1", "a"]);
    setup.write("backends.d/b.yaml", format!("{}{padding}", backend("b")));
    assert!(setup.mistakes()[0].contains("its files are larger than 1 MiB together"), "{:?}", setup.mistakes());
    let many = Setup::new(&format!("{HEAD}{OWN}"), &[]);
    (0..=FILES).for_each(|number| many.write(&format!("backends.d/{number}.yaml"), "[]"));
    assert!(many.mistakes()[0].contains("more than 1000 files"), "{:?}", many.mistakes());
    fs::remove_file(many.path("backends.d/0.yaml")).unwrap();
    assert_eq!(many.names(), ["server1"]);
}

#[test]
fn digest_changes_with_every_file() {
    let setup = Setup::new(&format!("{HEAD}{OWN}"), &[("a.yaml", &backend("a"))]);
    let mut seen = vec![setup.digest()];
    let mut changed = |change: &dyn Fn()| {
        change();
        let digest = setup.digest();
        assert!(!seen.contains(&digest));
        seen.push(digest);
    };
    changed(&|| setup.write("backends.d/b.yaml", backend("b")));
    changed(&|| setup.write("backends.d/b.yaml", backend("c")));
    changed(&|| fs::rename(setup.path("backends.d/b.yaml"), setup.path("backends.d/c.yaml")).unwrap());
    changed(&|| setup.write("backends.d/c.yaml", "name: c"));
    changed(&|| fs::rename(setup.path("backends.d"), setup.path("away")).unwrap());
    fs::rename(setup.path("away"), setup.path("backends.d")).unwrap();
    fs::remove_file(setup.path("backends.d/c.yaml")).unwrap();
    assert_eq!(setup.digest(), seen[0]);
    setup.write("backends.d/notes.txt", "x");
    assert_eq!(setup.digest(), seen[0]);
}

#[test]
fn folder_of_a_configmap_is_followed_through_its_links() {
    let setup = Setup::new(&format!("{HEAD}{OWN}"), &[]);
    for (version, name) in [("..1", "a"), ("..2", "b")] {
        fs::create_dir(setup.path(&format!("backends.d/{version}"))).unwrap();
        setup.write(&format!("backends.d/{version}/one.yaml"), backend(name));
    }
    symlink("..1", setup.path("backends.d/..data")).unwrap();
    symlink("..data/one.yaml", setup.path("backends.d/one.yaml")).unwrap();
    assert_eq!(setup.names(), ["server1", "a"]);
    let before = setup.digest();
    symlink("..2", setup.path("backends.d/..new")).unwrap();
    fs::rename(setup.path("backends.d/..new"), setup.path("backends.d/..data")).unwrap();
    assert_eq!(setup.names(), ["server1", "b"]);
    assert_ne!(setup.digest(), before);
}

#[test]
fn text_alone_reads_no_folder() {
    let setup = Setup::new(&format!("{HEAD}{OWN}"), &[("a.yaml", "}")]);
    let config = super::super::parse(&setup.path("config.yaml"), &format!("{HEAD}{OWN}")).unwrap();
    assert_eq!(config.routing.backends.len(), 1);
}
