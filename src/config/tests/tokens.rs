//! The section `tokens`.

use std::path::PathBuf;

use super::*;
use crate::proto::ldap::template::TemplatePart;

const SECOND: &str = "  - issuer: https://login.microsoftonline.com/2d4e3b11-7b7d-4b1b-8f7e-0a6d0c2f8a11/v2.0";

/// These issuers.
fn single(lines: &str) -> String {
    format!("{}tokens:\n{lines}\n", forwarding(SOUND))
}

/// The issuers of [`TOKENS`] with one replacement.
fn altered(from: &str, to: &str) -> String {
    assert!(TOKENS.contains(from), "{from:?} is not in TOKENS");
    format!("{}{}", forwarding(SOUND), TOKENS.replacen(from, to, 1))
}

#[track_caller]
fn mistake(from: &str, to: &str, key: &str, phrase: &str) {
    let text = altered(from, to);
    only_problem(&text, marked(&text), key, phrase);
}

#[track_caller]
fn suspicion(from: &str, to: &str, key: &str, phrase: &str) {
    let text = altered(from, to);
    let warnings = parse_text(&text).expect("refused").warnings;
    let [warning] = warnings.as_slice() else { panic!("not one warning: {warnings:#?}") };
    assert_eq!((warning.key.as_str(), warning.line), (key, marked(&text)), "{warning}");
    assert!(warning.message.contains(phrase), "{warning}");
}

/// A single issuer with these keys besides those that are required; one problem at `tokens[0].key`.
#[track_caller]
fn single_mistake(keys: &str, key: &str, phrase: &str) {
    let text = single(&format!("  - {{{keys}}} # HERE"));
    only_problem(&text, marked(&text), &format!("tokens[0]{key}"), phrase);
}

const REST: &str = "audience: mail, login_claim: sub";

#[track_caller]
fn issuers(lines: &str) -> Vec<TokenIssuer> {
    parse_text(&single(lines)).expect("refused").tokens
}

#[test]
fn attributes_that_a_claim_is_found_by_are_compared() {
    let config = parse_text(&altered("tokens", "tokens")).expect("refused");
    let found = &config.directories[0].claim_attributes;
    for name in ["entryUUID", "mailAlternateAddress", "mail"] {
        assert_eq!(found.iter().filter(|known| known.eq_ignore_ascii_case(name)).count(), 1, "{name}: {found:?}");
    }
    assert!(parse_text(&forwarding(SOUND)).expect("refused").directories[0].claim_attributes.is_empty());
}

#[test]
fn issuers_are_read() {
    let tokens = parse_text(&altered("tokens", "tokens")).expect("refused").tokens;
    let [first, second] = tokens.as_slice() else { panic!("{tokens:?}") };
    assert_eq!(first.issuer, "https://idp.example.com/realms/corp");
    assert_eq!(first.keys, Some(KeySource::File(PathBuf::from("/etc/usher/jwks.json"))));
    assert_eq!(
        (first.audience.as_slice(), first.clients.as_slice()),
        (&["mail".into(), "imap".into()][..], &["thunderbird".into()][..])
    );
    assert_eq!(first.scopes, ["openid", "mail"]);
    assert_eq!(
        first.filter.clone().unwrap().parts,
        [TemplatePart::Text("(entryUUID=".into()), TemplatePart::Login, TemplatePart::Text(")".into())]
    );
    assert_eq!(first.domains, ["example.com", "example.net"]);
    assert_eq!(first.domain_attribute, "mailAlternateAddress");
    assert_eq!((&first.introspection, &first.ca, &first.proxy), (&None, &None, &None));
    let Some(KeySource::Discovery(url)) = &second.keys else { panic!("{second:?}") };
    assert_eq!(url.as_str(), "https://idp.internal.example.com:8443/x/.well-known/openid-configuration");
    assert_eq!(second.proxy, Some(Address { host: "proxy.example.com".into(), port: 3_128 }));
    assert_eq!(second.ca, Some("/etc/usher/idp-ca.pem".into()));
    assert_eq!(second.domain_attribute, "mail");
    let introspection = second.introspection.as_ref().unwrap();
    assert_eq!(introspection.client_secret_file, PathBuf::from("/etc/usher/idp.secret"));
    assert_eq!(
        (introspection.client_id.as_str(), introspection.url.as_str()),
        ("usher", "https://idp.example.com/introspect")
    );
    // The directory's filter, with the claim as the login name.
    assert!(second.filter.is_none(), "that of its directory");
}

#[test]
fn keys_are_discovered_at_the_issuer_by_default() {
    let discovered = |keys: &str| {
        let tokens = issuers(&format!("  - {{issuer: {keys}, {REST}}}"));
        match &tokens[0].keys {
            Some(KeySource::Discovery(url) | KeySource::Url(url)) => Some(url.as_str().to_owned()),
            Some(KeySource::File(_)) | None => None,
        }
    };
    let document = "https://a.example/x/.well-known/openid-configuration";
    assert_eq!(discovered("https://a.example/x").as_deref(), Some(document));
    assert_eq!(discovered("https://a.example/x/").as_deref(), Some(document));
    let other = "https://a.example/.well-known/oauth-authorization-server/x";
    assert_eq!(discovered(&format!("https://a.example/x, discovery: {other}")).as_deref(), Some(other));
    assert_eq!(discovered("x, jwks: https://a.example/keys").as_deref(), Some("https://a.example/keys"));
    let introspection = "introspection: {url: https://a.example/i, client_id: usher, client_secret_file: s}";
    assert_eq!(discovered(&format!("x, {introspection}")), None);
    let text = format!("{SOUND}tokens: # HERE\n");
    only_problem(&text, marked(&text), "tokens", "the value is missing: write a list");
}

#[test]
fn mistakes_of_an_issuer_are_reported() {
    single_mistake(REST, ".issuer", "missing: write the exact value of `iss`");
    let with = |keys: &str, key: &str, phrase: &str| {
        single_mistake(&format!("issuer: https://a.example, {keys}"), key, phrase)
    };
    with("login_claim: sub", ".audience", "missing: write the value of `aud`");
    with("audience: mail", ".login_claim", "missing: write the claim");
    with("audience: [], login_claim: sub", ".audience", "the list is empty");
    with("audience: [mail, mail], login_claim: sub", ".audience[1]", "already used");
    with("audience: mail, login_claim: ' sub'", ".login_claim", "without blanks");
    let more = |keys: &str, key: &str, phrase: &str| with(&format!("{REST}, {keys}"), key, phrase);
    more("jwks: k, discovery: https://a.example", ".discovery", "takes the place of `jwks`");
    more("jwks: http://a.example/keys", ".jwks", "in clear: write https:// (http:// only to 127.0.0.1 or localhost)");
    more("discovery: a.example", ".discovery", "write a URL such as");
    more("discovery: https://u:p@a.example", ".discovery", "name and password are not allowed");
    more("filter: '(mail={login})'", ".filter", "unknown placeholder {login}: there is {claim}");
    more("filter: '(mail=x)'", ".filter", "put {claim}");
    more("filter: '({claim}=x)'", ".filter", "not a filter");
    more("domains: []", ".domains", "the list is empty");
    more("domains: '@example.com'", ".domains", "write a host name");
    more("domain_attribute: 'a)('", ".domain_attribute", "write an attribute name");
    more("unverified_email: yes", ".unverified_email", "");
    more("proxy: proxy.example.com", ".proxy", "such as \"http://proxy.example.com:3128\"");
    more("proxy: http://u:p@proxy.example.com:3128", ".proxy", "without a name or password");
    more("proxy: https://proxy.example.com:3128", ".proxy", "write host and port of an HTTP proxy");
    more("client_secret: x", ".client_secret", "passwords are not allowed in the configuration");
    let introspection = |keys: &str, key: &str, phrase: &str| {
        more(&format!("introspection: {{{keys}}}"), &format!(".introspection.{key}"), phrase);
    };
    introspection("client_id: a, client_secret_file: b", "url", "missing: write the introspection endpoint's URL");
    introspection("url: http://a.example, client_id: a, client_secret_file: b", "url", "in clear");
    introspection("url: https://a.example, client_secret_file: b", "client_id", "missing: write the name");
    introspection("url: https://a.example, client_id: a", "client_secret_file", "missing: name the file");
    single_mistake(&format!("issuer: corp, {REST}"), ".jwks", "the issuer is no https:// URL");
    single_mistake(&format!("issuer: http://a.example, {REST}"), ".jwks", "the issuer is no https:// URL");
    for tenant in ["common", "organizations", "Consumers"] {
        let url = format!("https://login.microsoftonline.com/{tenant}/v2.0");
        single_mistake(&format!("issuer: {url}, jwks: k, {REST}"), ".issuer", "tokens of every tenant");
        more(&format!("discovery: {url}"), ".discovery", "the keys of every tenant");
        more(&format!("jwks: {url}/keys"), ".jwks", "the keys of every tenant");
    }
}

#[test]
fn several_issuers_name_users_of_their_domains_alone() {
    let text = altered("    domains: example.org\n", "").replacen(SECOND, &format!("{SECOND} # HERE"), 1);
    // Where the issuer begins: the key is not there.
    only_problem(&text, marked(&text), "tokens[1].domains", "missing: with several issuers");
}

#[test]
fn issuers_do_not_share_a_name_or_opaque_tokens() {
    let same = "  - issuer: https://idp.example.com/realms/corp # HERE";
    mistake(SECOND, same, "tokens[1].issuer", "already used by tokens[0].issuer");
    let second = "client_secret_file: idp.secret}";
    let text = altered(second, &format!("{second} # HERE")).replacen(
        "    jwks: jwks.json\n",
        "    introspection: {url: https://a.example, client_id: a, client_secret_file: b}\n",
        1,
    );
    let words = "an opaque token does not show its issuer, and tokens[0].introspection has one";
    only_problem(&text, marked(&text), "tokens[1].introspection", words);
}

#[test]
fn suspicious_issuers_are_warned_of() {
    for claim in ["email", "upn", "preferred_username"] {
        let to = format!("    login_claim: {claim} # HERE\n    filter");
        suspicion("    login_claim: sub\n    filter", &to, "tokens[0].login_claim", "can be changed");
    }
    suspicion(
        "    audience: [mail, imap]\n    clients: thunderbird",
        "    clients: thunderbird # HERE",
        "tokens[0].clients",
        "for other services are accepted",
    );
    suspicion(
        "    login_claim: sub\n    filter",
        "    login_claim: sub\n    unverified_email: accept # HERE\n    filter",
        "tokens[0].unverified_email",
        "without effect",
    );
    suspicion("    jwks: jwks.json", "    jwks: jwks.json\n    ca: ca.pem # HERE", "tokens[0].ca", "without effect");
}

#[test]
fn tokens_need_a_search_for_their_entry() {
    let text = replaced(
        "  base: ou=people,dc=example,dc=com\n  filter: (|(uid={local})(mail={login}))\n",
        "  user_dn: uid={login},dc=x\n",
    );
    let text = format!("{text}{}", TOKENS.replacen("tokens:", "tokens: # HERE", 1));
    only_problem(&text, marked(&text), "tokens", "use `directory.base` and `directory.filter`");
}

#[test]
fn mechanisms_of_a_listener_are_known_ones() {
    let listener = |more: &str| {
        let line = "  - {protocol: imap, address: \"[::]:993\", tls: implicit}";
        format!("{}{TOKENS}", SOUND.replacen(line, &line.replace('}', &format!(", mechanisms: {more}}} # HERE")), 1))
    };
    let set = |more: &str| parse_text(&listener(more)).unwrap().listeners[0].mechanisms.unwrap();
    assert!(set("[oauthbearer, PLAIN]").names().eq(["PLAIN", "OAUTHBEARER"]));
    assert!(set("XOAUTH2").names().eq(["XOAUTH2"]));
    assert_eq!(parse_text(SOUND).unwrap().listeners[0].mechanisms, None);
    let text = listener("[PLAIN, SCRAM-SHA-256]");
    only_problem(&text, marked(&text), "listeners[0].mechanisms[1]", "PLAIN, LOGIN, OAUTHBEARER, XOAUTH2, EXTERNAL");
    let text = listener("[]");
    assert!(parse_text(&text).is_err(), "none is no list of mechanisms");
}

#[test]
fn backends_without_a_way_for_tokens_are_reported() {
    let warned = |text: &str, phrase: &str| {
        let warnings = parse_text(text).unwrap().warnings;
        warnings.iter().any(|warning| warning.message.contains(phrase))
    };
    assert!(warned(&format!("{SOUND}{TOKENS}"), "give the backend `service` or `token: forward`"));
    assert!(!warned(SOUND, "token"));
    let with = |key: &str| SOUND.replacen("    - name: server3\n", &format!("    - name: server3\n      {key}\n"), 1);
    let text = with("token: forward");
    assert_ne!(text, SOUND);
    assert!(warned(&text, "without effect: `tokens` has no issuer"));
    assert!(warned(&with("user_claim: email"), "without effect: the token is not forwarded"));
    let text = format!("{}{TOKENS}", with("token: forward\n      user_claim: upn"));
    let backends = parse_text(&text).unwrap().routing.backends;
    assert_eq!(backends[0].token, TokenLogin::Forward { user_claim: Some("upn".to_owned()) });
    let text = with("token: maybe # HERE");
    only_problem(&text, marked(&text), "routing.backends[0].token", "forward");
}
