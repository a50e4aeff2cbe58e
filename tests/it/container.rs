//! usher in a container and in Kubernetes: volumes that are replaced by a link, the first process, the health check;
//! and that what is shipped in `deploy/` for both is valid.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustls::HandshakeKind;
use serde_json::{Value, json};

use crate::auth_http::{ask, question};
use crate::kit::certs::{Leaf, Pair};
use crate::kit::process::{folder, free_port, require, run};
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::usher::command;
use crate::kit::{Config, Usher, shared, slapd};
use crate::lifecycle::seconds;
use crate::reload_drain::{login, named};
use crate::resumption::{key, visit};

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Puts these files into a volume as the kubelet does: a new folder, and one rename of the link to it
/// (pkg/volume/util/atomic_writer.go).
fn project(volume: &Path, files: &[(&str, Vec<u8>)]) {
    let before = std::fs::read_link(volume.join("..data")).ok();
    let number = before.as_ref().map_or(1, |name| name.to_str().unwrap()[6..].parse::<u32>().unwrap() + 1);
    let data = format!("..2026{number}");
    std::fs::create_dir(volume.join(&data)).unwrap();
    for (name, content) in files {
        let path = volume.join(&data).join(name);
        std::fs::write(&path, content).unwrap();
        set_mode(&path, 0o640);
    }
    symlink(&data, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (name, _) in files {
        let _ = symlink(format!("..data/{name}"), volume.join(name));
    }
    if let Some(before) = before {
        std::fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

/// The text of a configuration file.
fn text(config: &Config) -> Vec<u8> {
    std::fs::read(config.clone().write()).unwrap()
}

/// The status of a request with this key of nginx: 403 unless it is the right one.
fn key_status(port: u16, key: &str) -> String {
    let reply = ask(port, &question("alice", "wrong", "imap", 1, &format!("X-Auth-Key: {key}\r\n")));
    reply.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn replaced_volume_is_taken_over_with_configuration_certificate_keys_and_secrets() {
    let (old, new) = (named("old"), named("new"));
    let leaf = |name| shared().certificates.leaf(name, Leaf::server(&["usher.example.com"]));
    let (first, second) = (leaf("volume-1"), leaf("volume-2"));
    let nginx = free_port();
    let config = Config::with_directory(slapd())
        .scripted(&old)
        .set("/config_reload", "auto")
        .set("/tls/certificates", json!([{"chain": "tls.crt", "key": "tls.key"}]))
        .set("/tls/ticket_keys_file", "ticket.keys")
        .set("/tls/reload_interval", "1s")
        .set(
            "/auth_http",
            json!({"address": format!("127.0.0.1:{nginx}"), "allow": "127.0.0.1", "key_file": "nginx.key"}),
        )
        // An emptyDir in memory, and usher's own folder in it.
        .set("/control/path", "run/control/socket");
    let files = |config: &Config, pair: &Pair, ticket: u8, key_file: &str| {
        vec![
            ("usher.yaml", text(config)),
            ("tls.crt", std::fs::read(&pair.chain).unwrap()),
            ("tls.key", std::fs::read(&pair.key).unwrap()),
            ("ticket.keys", (key(ticket) + &key(ticket + 1) + &key(ticket + 2)).into_bytes()),
            ("ldap.password", format!("{SERVICE_PASSWORD}\n").into_bytes()),
            ("nginx.key", key_file.as_bytes().to_vec()),
        ]
    };
    let (volume, empty_dir) = (config.path(""), config.path("run"));
    std::fs::remove_file(config.path("ldap.password")).unwrap();
    // The root of such a volume is a tmpfs, open to all with the sticky bit.
    set_mode(&volume, 0o3777);
    std::fs::create_dir(&empty_dir).unwrap();
    set_mode(&empty_dir, 0o3777);
    project(&volume, &files(&config, &first, 1, "one"));
    let checked =
        run(crate::kit::usher::BINARY, &["check", "--config", config.path("usher.yaml").to_str().unwrap()], b"");
    assert_eq!(checked.code, 0, "{checked:#?}");
    assert!(!checked.stderr.contains("secret") && !checked.stderr.contains("mode 0"), "{checked:#?}");
    let mut usher = Usher::start(config);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&empty_dir.join("control")), mode(&empty_dir.join("control/socket"))), (0o755, 0o600));
    usher.command(&["sessions"]).succeeded();
    let (mut session, said) = login(&usher);
    assert!(said.ends_with("this is old"), "{said}");
    assert_eq!((&*key_status(nginx, "one"), &*key_status(nginx, "two")), ("200", "403"));
    let client = crate::kit::client::Tls::default().config();
    visit(&usher, &client);

    // Everything at once.
    usher.config.change("/routing/backends/0/imap/address", format!("127.0.0.1:{}", new.port));
    project(&volume, &files(&usher.config, &second, 2, "two"));
    usher.wait_log("reloaded: changed configuration file", |_| true);
    let (imap, said) = login(&usher);
    assert!(said.ends_with("this is new"), "{said}");
    assert_eq!(imap.connection().peer_certificates().unwrap()[0], second.certificates()[0]);
    assert_eq!((&*key_status(nginx, "one"), &*key_status(nginx, "two")), ("403", "200"));
    assert_eq!(visit(&usher, &client), HandshakeKind::Resumed, "the second key made it");
    session.command("NOOP").is("OK did NOOP");

    // Secrets alone, as when cert-manager renews the certificate.
    let ok = [("result", "ok")];
    assert_eq!(usher.metric("usher_certificate_reloads_total", &ok), 0.0, "they came with the configuration");
    project(&volume, &files(&usher.config, &first, 9, "three"));
    usher.wait_metric("usher_certificate_reloads_total", &ok, 1.0);
    assert_eq!(login(&usher).0.connection().peer_certificates().unwrap()[0], first.certificates()[0]);
    assert_eq!(key_status(nginx, "three"), "200");

    // A file with a mistake, and a Secret that lacks its key.
    let mut bad = files(&usher.config, &first, 9, "three");
    bad[0].1.extend_from_slice(b"no_such_key: 1\n");
    project(&volume, &bad);
    usher.wait_log("a changed configuration file is invalid; the previous one stays active", |_| true);
    let mut bad = files(&usher.config, &second, 9, "three");
    bad[2].1 = std::fs::read(&first.key).unwrap();
    project(&volume, &bad);
    usher.wait_log("a changed file is invalid; its previous content stays active", |line| {
        line["problem"].as_str().is_some_and(|problem| problem.contains("does not belong"))
    });
    session.command("NOOP").is("OK did NOOP");
    assert!(login(&usher).1.ends_with("this is new"));
}

#[test]
fn upgrade_of_the_first_process_is_refused_with_advice() {
    let backend = named("one");
    let first = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let usher = Usher::start_under(Config::with_directory(slapd()).scripted(&backend), &first);
    assert_eq!(usher.wait_log("started", |_| true)["process"], 1);
    let refused = usher.command(&["upgrade"]);
    assert_eq!(refused.code, 1, "{refused:#?}");
    for words in ["usher is PID 1", "kubectl rollout restart deployment/usher", "the old process continues"] {
        assert!(refused.stderr.contains(words), "{refused:#?}");
    }
    login(&usher).0.command("NOOP").ok();
    usher.command(&["reload"]).succeeded();
}

#[test]
fn ready_command_reports_what_a_load_balancer_hears() {
    let backend = named("one");
    let (config, _) = Config::with_directory(slapd()).scripted(&backend).with_ports();
    config.write();
    let absent = command(&config, &["ready"], b"");
    assert!(absent.code == 69 && absent.stderr.contains("is usher running?"), "{absent:#?}");
    let usher = Usher::start(config);
    usher.wait_log("ready", |_| true);
    let said = usher.command(&["ready", "--json"]).succeeded();
    let value: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&value["ready"], &value["status"]), (&serde_json::json!(true), &serde_json::json!(200)), "{said:?}");
    let said = usher.command(&["ready"]);
    assert_eq!((said.code, &*said.stdout), (0, "ready\n"), "{said:#?}");
    usher.command(&["drain", "--ready-only"]).succeeded();
    let said = usher.command(&["ready"]);
    assert!(said.code == 1 && said.stdout.contains("usher drain --undo"), "{said:#?}");
    usher.command(&["drain", "--undo"]).succeeded();
    // A file with a mistake is no reason to end what runs.
    let good = std::fs::read_to_string(usher.config.path("usher.yaml")).unwrap();
    usher.config.write_text(&format!("{good}no_such_key: 1\n"));
    assert_eq!(usher.command(&["ready"]).code, 0);
}

/// A folder that `tests/run` makes.
pub(crate) fn made(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name(name);
    require(&folder.join("complete"));
    folder
}

fn deploy(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name).display().to_string()
}

/// What `kubectl kustomize` makes of the shipped base.
fn rendered() -> String {
    let kubectl = made("kubernetes-client").join("usr/bin/kubectl").display().to_string();
    run(&kubectl, &["kustomize", &deploy("kubernetes")], b"").succeeded().stdout
}

/// The objects by kind; there is one of each.
fn objects(rendered: &str) -> Value {
    let script = "import json, sys, yaml; print(json.dumps({o['kind']: o for o in yaml.safe_load_all(sys.stdin)}))";
    let python = made("python").join("bin/python3").display().to_string();
    let objects = run(&python, &["-c", script], rendered.as_bytes()).succeeded().stdout;
    serde_json::from_str(&objects).unwrap()
}

#[test]
fn kubernetes_base_fits_the_schemas_of_old_and_new_clusters() {
    let (rendered, folder) = (rendered(), folder("kubernetes"));
    let validate = made("python").join("bin/kubernetes-validate").display().to_string();
    let valid = |text: &str, version| {
        let file = folder.join("rendered.yaml");
        std::fs::write(&file, text).unwrap();
        run(&validate, &["--strict", "--kubernetes-version", version, file.to_str().unwrap()], b"")
    };
    for version in ["1.25", "1.37"] {
        let output = valid(&rendered, version);
        assert_eq!(output.code, 0, "{output:#?}");
    }
    let output = valid(&rendered.replace("maxUnavailable: 0", "maxUnavailble: 0"), "1.37");
    assert_ne!(output.code, 0, "{output:#?}");
}

#[test]
fn kubernetes_base_is_consistent_with_its_configuration() {
    let objects = objects(&rendered());
    let deployment = &objects["Deployment"]["spec"];
    let (pod, container) = (&deployment["template"]["spec"], &deployment["template"]["spec"]["containers"][0]);
    let image = container["image"].as_str().unwrap();
    assert!(image.ends_with(&format!("/usher:{}", env!("CARGO_PKG_VERSION"))), "{image}");
    assert_eq!(deployment["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    let config: Value = serde_yaml::from_str(objects["ConfigMap"]["data"]["config.yaml"].as_str().unwrap()).unwrap();

    // The end of a pod.
    let drain = |key: &str| seconds(config["drain"][key].as_str().unwrap());
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert_eq!(grace, drain("delay") + drain("deadline") + 15);
    assert_eq!(container["lifecycle"], Value::Null, "usher waits itself");
    let readiness = &container["readinessProbe"];
    assert_eq!(readiness["httpGet"], json!({"path": "/ready", "port": "admin"}));
    let found = readiness["periodSeconds"].as_u64().unwrap() * readiness["failureThreshold"].as_u64().unwrap();
    assert!(found + readiness["timeoutSeconds"].as_u64().unwrap() < drain("delay") / 2);
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/live", "port": "admin"}));

    // Ports: what listens is a named port of the container, the Service and the policy have each.
    let port_of = |address: &Value| address.as_str().unwrap().rsplit(':').next().unwrap().parse::<u64>().unwrap();
    let named = |name: &Value| {
        let ports = container["ports"].as_array().unwrap().iter();
        ports.filter(|port| port["name"] == *name).map(|port| port["containerPort"].as_u64().unwrap()).next().unwrap()
    };
    let listening: Vec<u64> =
        config["listeners"].as_array().unwrap().iter().map(|listener| port_of(&listener["address"])).collect();
    let service = objects["Service"]["spec"]["ports"].as_array().unwrap();
    assert_eq!(service.iter().map(|port| named(&port["targetPort"])).collect::<Vec<_>>(), listening);
    assert_eq!(service.iter().map(|port| &port["port"]).collect::<Vec<_>>(), [993, 995, 465, 4190]);
    let rules = &objects["NetworkPolicy"]["spec"]["ingress"];
    let allowed = rules[0]["ports"].as_array().unwrap().iter().map(|port| named(&port["port"]));
    assert_eq!(allowed.collect::<Vec<_>>(), listening);
    assert_eq!(named(&rules[1]["ports"][0]["port"]), port_of(&config["admin"]["address"]));
    assert_eq!(deployment["template"]["metadata"]["annotations"]["prometheus.io/port"], "9930");
    for listener in config["listeners"].as_array().unwrap() {
        assert!(port_of(&listener["address"]) > 1024 && listener["proxy_header"] == "required");
        assert_eq!(listener["trusted"][0], rules[0]["from"][0]["ipBlock"]["cidr"]);
    }

    // Who it is, and what it may write.
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(pod["securityContext"]["fsGroup"], pod["securityContext"]["runAsGroup"]);
    let dockerfile = std::fs::read_to_string(deploy("Dockerfile")).unwrap();
    assert!(dockerfile.contains(&format!("USER {0}:{0}", pod["securityContext"]["runAsUser"])));
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount["subPath"] == Value::Null), "it would never be updated");
    let control = config["control"]["path"].as_str().unwrap();
    let above = Path::new(control).ancestors().nth(2).unwrap().to_str().unwrap();
    let run = mounts.iter().find(|mount| mount["mountPath"] == above).expect("a volume for the control socket");
    let volume =
        |name: &Value| pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == *name).unwrap();
    assert_eq!(volume(&run["name"])["emptyDir"]["medium"], "Memory");
    let projected =
        &volume(&mounts.iter().find(|mount| mount["mountPath"] == "/etc/usher").unwrap()["name"])["projected"];
    assert_eq!(projected["defaultMode"], 0o440);
}

#[test]
fn kubernetes_configuration_is_valid_in_the_volume() {
    let objects = objects(&rendered());
    let pod = &objects["Deployment"]["spec"]["template"]["spec"];
    let sources = pod["volumes"][0]["projected"]["sources"].as_array().unwrap();
    let volume = folder("kubernetes");
    let place = |path: &str, content: Vec<u8>| {
        let path = volume.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        set_mode(&path, 0o440);
    };
    place("config.yaml", objects["ConfigMap"]["data"]["config.yaml"].as_str().unwrap().into());
    for item in sources.iter().filter_map(|source| source["secret"]["items"].as_array()).flatten() {
        let content = match item["key"].as_str().unwrap() {
            "tls.crt" => std::fs::read(&shared().usher.chain).unwrap(),
            _ => std::fs::read(&shared().usher.key).unwrap(),
        };
        place(item["path"].as_str().unwrap(), content);
    }
    // The other Secret as a whole, with the keys that docs/kubernetes.md gives it.
    assert!(sources.iter().any(|source| source["secret"] == json!({"name": "usher"})), "{sources:?}");
    let page = std::fs::read_to_string(deploy("../docs/kubernetes.md")).unwrap();
    let command = page.split("create secret generic usher").nth(1).unwrap().split("kubectl").next().unwrap();
    let keys: Vec<&str> =
        command.split("--from-file=").skip(1).map(|key| key.split_whitespace().next().unwrap()).collect();
    assert_eq!(keys.len(), 4, "{command}");
    for name in keys {
        let content = match name {
            "ticket.keys" => key(1).into_bytes(),
            "ldap.password" => b"secret\n".to_vec(),
            _ => std::fs::read(shared().certificates.ca()).unwrap(),
        };
        place(name, content);
    }
    let file = volume.join("config.yaml").display().to_string();
    let checked = run(crate::kit::usher::BINARY, &["check", "--config", &file], b"");
    assert_eq!(checked.code, 0, "{checked:#?}");
    let warnings: Vec<&str> = checked.stderr.lines().filter(|line| !line.contains("limits.connections")).collect();
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn dockerfile_has_no_finding_and_a_health_check() {
    let hadolint = made("python").join("bin/hadolint").display().to_string();
    let output = run(&hadolint, &[&deploy("Dockerfile")], b"");
    assert!(output.code == 0 && output.stdout.is_empty(), "{output:#?}");
    let text = std::fs::read_to_string(deploy("Dockerfile")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let version = concat!("FROM rust:", env!("CARGO_PKG_RUST_VERSION"), "-slim-bookworm AS build");
    assert!(lines.contains(&version), "{version}");
    assert!(text.contains("CMD [\"/usr/bin/usher\", \"ready\"]"));
    // Everything that it copies is in the context.
    let context = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".dockerignore")).unwrap();
    for needed in ["Cargo.toml", "Cargo.lock", "src", "benches", "LICENSE*"] {
        assert!(context.lines().any(|line| line.strip_prefix('!') == Some(needed)), "{needed}");
    }
}

#[test]
fn image_script_is_valid_shell_and_names_the_same_user_and_ports() {
    let path = deploy("image");
    run("bash", &["-n", &path], b"").succeeded();
    let [script, dockerfile] = ["image", "Dockerfile"].map(|name| std::fs::read_to_string(deploy(name)).unwrap());
    assert!(script.contains("--user 10001:10001") && dockerfile.contains("USER 10001:10001"));
    let exposed = dockerfile.lines().find_map(|line| line.strip_prefix("EXPOSE ")).unwrap();
    let ports: Vec<String> = exposed.split(' ').map(|port| format!("--port {port}")).collect();
    assert!(ports.iter().all(|port| script.contains(port)), "{ports:?}");
}
