//! Several directories: which names each has, and what names one elsewhere.

use super::*;
use crate::config::DomainPattern;

/// Two directories, and a text behind them.
fn with(corp: &str, partner: &str, more: &str) -> String {
    let directory = |name: &str, keys: &str| {
        format!(
            "  - name: {name}
    servers: [\"ldaps://{name}\"]
    base: dc=x
    filter: \"(uid={{login}})\"
    login_attribute: uid
{keys}"
        )
    };
    format!(
        "listeners: [{{protocol: imap, address: '127.0.0.1:993', tls: implicit}}]
tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}
directories:
{}{}routing:
  backends:
    - {{name: server3, service: {{login: usher, password_file: p}}, imap: {{address: '192.0.2.3:993', tls: implicit}}}}
{more}",
        directory("corp", corp),
        directory("partner", partner)
    )
}

const CORP: &str = "    domains: [example.com, \"*.Example.ORG\", \"\"]\n";
const PARTNER: &str = "    domains: partner.example\n";

#[track_caller]
fn wrong(text: &str, key: &str, phrase: &str) {
    only_problem(text, marked(text), key, phrase);
}

#[test]
fn list_is_read() {
    let config = parse_text(&with(CORP, PARTNER, "")).unwrap();
    assert_eq!(config.warnings, []);
    let [corp, partner] = config.directories.as_slice() else { panic!("{:?}", config.directories) };
    assert_eq!((corp.name.as_str(), corp.key.as_str()), ("corp", "directories[0]"));
    assert_eq!((partner.name.as_str(), partner.key.as_str()), ("partner", "directories[1]"));
    let patterns = [
        DomainPattern::Exact("example.com".to_owned()),
        DomainPattern::Suffix("example.org".to_owned()),
        DomainPattern::None,
    ];
    assert_eq!(corp.domains, patterns);
    assert!(corp.answers_like(&Directory { key: String::new(), domains: Vec::new(), ..corp.clone() }));
    assert!(!corp.answers_like(partner));
    // Alone, one needs no domains, and may have some.
    let text = with("", "    domains: x.example\n", "");
    let alone = |from: &str, to: &str| {
        let (start, end) = (text.find(from).unwrap(), text.find(to).unwrap());
        parse_text(&format!("{}{}", &text[..start], &text[end..])).unwrap().directories.remove(0)
    };
    assert!(!alone("  - name: partner", "routing:").is_one_of_several());
    assert!(alone("  - name: corp", "  - name: partner").is_one_of_several());
}

#[test]
fn mistakes_of_names_and_domains_are_reported() {
    let corp = "    domains: [a.example] # HERE\n";
    for (domains, key, phrase) in [
        ("[\"*\"]", "directories[0].domains[0]", "write a domain such as"),
        ("[\"*.*.example\"]", "directories[0].domains[0]", "write a domain such as"),
        ("[\"user@example.com\"]", "directories[0].domains[0]", "write a domain such as"),
        ("[\"b\u{fc}cher.example\"]", "directories[0].domains[0]", "A-label"),
        ("[example.com.]", "directories[0].domains[0]", "write a domain such as"),
        ("[192.0.2.1]", "directories[0].domains[0]", "write a domain such as"),
        ("[a.example, A.example]", "directories[0].domains[1]", "already used"),
        ("[]", "directories[0].domains", "the list is empty"),
    ] {
        wrong(&with(&corp.replace("[a.example]", domains), PARTNER, ""), key, phrase);
    }
    wrong(
        &with(CORP, PARTNER, "").replace("name: partner", "name: corp # HERE"),
        "directories[1].name",
        "already used",
    );
    for name in ["Corp", "a.b", "\"\"", "'a b'"] {
        let text = with(CORP, PARTNER, "").replace("name: corp", &format!("name: {name} # HERE"));
        wrong(&text, "directories[0].name", "write 1 to 32 of");
    }
    let text = with(CORP, PARTNER, "").replace(
        "directories:",
        "directory: {servers: 'ldaps://x', base: dc=x, filter: '(uid={login})'}\ndirectories: # HERE",
    );
    wrong(&text, "directories", "takes the place of `directory`");
    let missing = parse_text(&with("", PARTNER, "")).unwrap_err();
    assert_eq!((missing[0].key.as_str(), missing.len()), ("directories[0].domains", 1), "{missing:?}");
    let unnamed =
        parse_text(&with(CORP, PARTNER, "").replace("  - name: corp\n    servers", "  - servers")).unwrap_err();
    assert_eq!((unnamed[0].key.as_str(), unnamed.len()), ("directories[0].name", 1));
    // What belongs to the list has no meaning in the short form.
    let short = parse_text(&replaced("directory:\n", "directory:\n  domains: [example.com] # HERE\n")).unwrap_err();
    assert!(short[0].message.contains("unknown key"), "{:?}", short);
}

#[test]
fn shared_domain_needs_a_directory_that_can_be_searched() {
    let by_dn = |domains: &str| {
        let text = with(CORP, &format!("    domains: {domains}\n"), "");
        let (start, end) = (text.rfind("    base: dc=x").unwrap(), text.rfind("    login_attribute").unwrap());
        format!("{}    user_dn: \"uid={{login}},dc=x\"\n{}", &text[..start], &text[end..])
    };
    let problem = |text: &str| parse_text(text).map(|_| ()).map_err(|mistakes| mistakes[0].to_string());
    assert_eq!(problem(&by_dn("[partner.example, example.org]")), Ok(()));
    for shared in ["\"\"", "EXAMPLE.com", "a.example.org", "\"*.b.example.org\"", "\"*.org\""] {
        let problem = problem(&by_dn(shared)).unwrap_err();
        assert!(problem.contains("directories[1]: shares a domain with corp"), "{shared}: {problem}");
        let account = "    bind_dn: cn=usher,dc=x\n    bind_password_file: p\n    login_attribute: uid\nrouting";
        let text = by_dn(shared).replace("    login_attribute: uid\n    domains", "    DOMAINS");
        let text = text.replace("    login_attribute: uid\nrouting", account).replace(
            "    DOMAINS",
            "    login_attribute: uid\n    bind_dn: cn=usher,dc=x\n    bind_password_file: p\n    domains",
        );
        assert!(parse_text(&text).is_ok(), "{:?}", parse_text(&text).err());
    }
}

#[test]
fn directory_is_named_where_it_matters() {
    let issuer = |more: &str| {
        format!("tokens: [{{issuer: 'https://idp', audience: mail, login_claim: sub, jwks: k.json{more}}}]\n")
    };
    let tokens = |more: &str| parse_text(&with(CORP, PARTNER, &issuer(more))).unwrap();
    assert_eq!(tokens(", directory: partner").tokens[0].directory.as_deref(), Some("partner"));
    let by_domain = tokens("");
    assert!(by_domain.tokens[0].directory.is_none());
    assert!(
        by_domain.warnings.iter().any(|warning| warning.key == "tokens[0].login_claim"),
        "{:?}",
        by_domain.warnings
    );
    // Only that directory is read for what its filter compares.
    let filter = tokens(", directory: partner, filter: '(employeeNumber={claim})'").directories;
    let compared: Vec<_> = filter.iter().map(|one| one.claim_attributes.as_slice()).collect();
    assert_eq!(compared, [&[][..], &["employeeNumber".to_owned()][..]]);
    wrong(
        &with(CORP, PARTNER, &issuer(", directory: none}] # HERE\n#")),
        "tokens[0].directory",
        "no directory has this name: write one of corp, partner",
    );
    let acting =
        |more: &str| format!("impersonation: {{admins: ['uid=admin,dc=x'], networks: [192.0.2.0/24]{more}}} # HERE\n");
    wrong(&with(CORP, PARTNER, &acting("")), "impersonation.directory", "which directory has them, of corp, partner");
    wrong(&with(CORP, PARTNER, &acting(", directory: x")), "impersonation.directory", "no directory has this name");
    let acting = |more: &str| {
        let config = parse_text(&with(CORP, PARTNER, &acting(more))).unwrap();
        let administrators = config.impersonation.administrators.unwrap();
        (administrators.directory, administrators.target_directories)
    };
    assert_eq!(acting(", directory: corp"), ("corp".to_owned(), None));
    let both = Some(vec!["corp".to_owned(), "partner".to_owned()]);
    assert_eq!(acting(", directory: corp, target_directories: [corp, partner]"), ("corp".to_owned(), both));
    let listener = |directory: &str| {
        let text = with(CORP, PARTNER, "");
        text.replace(
            "tls: implicit}]\n",
            &format!("tls: implicit, client_ca: ca.pem, client_login: {{match: certificate, directory: {directory}}}}}] # HERE\n"),
        )
    };
    wrong(
        &listener("other"),
        "listeners[0].client_login.directory",
        "no directory `other`: write one of corp, partner",
    );
    let config = parse_text(&listener("partner")).unwrap();
    let reads: Vec<_> = config.directories.iter().map(|one| one.reads_certificates).collect();
    assert_eq!(reads, [false, true]);
}

#[test]
fn advice_names_the_directory() {
    let text =
        with(CORP, PARTNER, "").replacen("    login_attribute: uid\n    domains: partner", "    domains: partner", 1);
    let problems = parse_text(&text).unwrap_err();
    assert!(problems[0].message.contains("`directories[1].login_attribute`"), "{problems:?}");
    let networks = with(&format!("{CORP}    networks_attribute: nets # HERE\n"), PARTNER, "");
    let warning = parse_text(&networks).unwrap().warnings.remove(0);
    assert_eq!((warning.key.as_str(), warning.line), ("directories[0].networks_attribute", marked(&networks)));
    assert!(warning.message.contains("`directories[0].canary`"), "{warning}");
}

#[test]
fn windows_domains_are_read_and_their_mistakes_reported() {
    let windows = |keys: &str| with(CORP, PARTNER, &format!("windows_domains:\n{keys}"));
    let filter = "filter: \"(sAMAccountName={local})\"";
    let config = parse_text(&windows(&format!(
        "  EXAMPLE: {{directory: partner, {filter}}}\n  Old-1: {{directory: corp, {filter}}}\n"
    )));
    let config = config.unwrap();
    assert_eq!(config.warnings, []);
    let names: Vec<_> = config.directories.iter().map(|one| one.windows_domains[0].name.as_str()).collect();
    assert_eq!(names, ["old-1", "example"]);
    for (line, key, phrase) in [
        (format!("EXAMPLE: {{{filter}}}"), "EXAMPLE.directory", "which directory has its users, of corp, partner"),
        (format!("EXAMPLE: {{directory: x, {filter}}}"), "EXAMPLE.directory", "no directory has this name"),
        ("EXAMPLE: {directory: corp}".to_owned(), "EXAMPLE.filter", "such as"),
        ("EXAMPLE: {directory: corp, filter: \"(a={login})\"}".to_owned(), "EXAMPLE.filter", "write {local}"),
        ("EXAMPLE: {directory: corp, filter: \"(a=b)\"}".to_owned(), "EXAMPLE.filter", ""),
        (format!("EX AMPLE: {{directory: corp, {filter}}}"), "EX AMPLE", "NetBIOS name"),
        (format!("ABCDEFGHIJKLMNOP: {{directory: corp, {filter}}}"), "ABCDEFGHIJKLMNOP", "NetBIOS name"),
        (format!("EXAMPLE: {{directory: corp, {filter}, zzz: 1}}"), "EXAMPLE.zzz", "unknown key"),
    ] {
        wrong(&windows(&format!("  {line} # HERE\n")), &format!("windows_domains.{key}"), phrase);
    }
    let twice = windows(&format!("  A: {{directory: corp, {filter}}}\n  a: {{directory: corp, {filter}}} # HERE\n"));
    wrong(&twice, "windows_domains.a", "already used");
    let text = windows(&format!("  A: {{directory: corp, {filter}}} # HERE\n"));
    let text =
        text.replacen("    login_attribute: uid\n", "", 1).replace("service: {login: usher, password_file: p}, ", "");
    wrong(&text, "windows_domains.A", "needs `directories[0].login_attribute`");
    // The short form has one directory, which need not be named; one that is not searched finds no such name.
    let short = |keys: &str| {
        format!(
            "listeners: [{{protocol: imap, address: '127.0.0.1:993', tls: implicit}}]
tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}
directory: {{servers: 'ldaps://x', login_attribute: uid, {keys}}}
routing: {{backends: [{{name: server3, imap: {{address: '192.0.2.3:993', tls: implicit}}}}]}}
windows_domains:
  A: {{{filter}}} # HERE
"
        )
    };
    let config = parse_text(&short("base: dc=x, filter: '(uid={login})'")).unwrap();
    assert_eq!(config.directories[0].windows_domains.len(), 1);
    wrong(&short("user_dn: 'uid={login},dc=x'"), "windows_domains.A", "give `directory` a `base` and a `filter`");
}
