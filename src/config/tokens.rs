//! The `tokens` section: whose tokens are accepted, and how the claim of one becomes an entry.

use super::model::{Address, Directory, HttpUrl, Introspection, KeySource, TokenIssuer};
use super::raw::{Node, Section, Unique};
use super::url::UrlError;
use super::{directories, names};
use crate::proto::ldap::template;

/// The path of the document below an issuer (OpenID Connect Discovery 1.0 section 4).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Claims whose values users or administrators change, and that another user may have afterwards.
const MUTABLE: [&str; 7] =
    ["email", "upn", "preferred_username", "unique_name", "name", "nickname", "verified_primary_email"];

/// Paths of issuers that sign for every customer: whoever rents one there would be believed.
const SHARED: [&str; 3] = ["common", "organizations", "consumers"];

/// The longest text of an issuer, an audience, a claim's name.
const LONGEST: usize = 512;

/// What no two issuers may share.
#[derive(Default)]
struct Taken {
    issuers: Unique,
    introspection: Option<String>,
}

/// Reads the list; `directories` are those that are sound, `names` those of all.
pub(super) fn read(node: &Node<'_>, directories: Option<&[Directory]>, names: &[String]) -> Option<Vec<TokenIssuer>> {
    let items = node.list()?;
    let several = items.len() > 1;
    let can_search = |one: &Directory| one.find.filter().is_some();
    if let Some([first, others @ ..]) = directories
        && !can_search(first)
        && !others.iter().any(can_search)
    {
        node.problem(no_search(first, ""));
        return None;
    }
    let mut taken = Taken::default();
    let known = (directories.unwrap_or_default(), names);
    let mut read = |item: &Node<'_>| item.section(|section| issuer(section, known, several, &mut taken)).flatten();
    let issuers: Vec<_> = items.iter().map(&mut read).collect();
    issuers.into_iter().collect()
}

fn no_search(directory: &Directory, other: &str) -> String {
    let key = &directory.key;
    format!(
        "the entry of a token is searched for, and `{key}.user_dn` needs the user's password: use `{key}.base` and \
         `{key}.filter`{other}"
    )
}

/// The directory of an issuer's users, which searches for their entries.
fn directory(section: &Section<'_>, (all, names): (&[Directory], &[String])) -> Option<Option<String>> {
    let named = match section.get("directory") {
        Some(node) => Some(directories::named(&node, names)?),
        None => None,
    };
    let of_issuer = |one: &&Directory| named.as_ref().is_none_or(|name| one.name == *name);
    let cannot_search = |one: &&Directory| one.find.filter().is_none();
    if let Some(one) = all.iter().filter(of_issuer).find(cannot_search) {
        section.problem("", no_search(one, ", or write the `directory` of another one"));
        return None;
    }
    Some(named)
}

fn issuer(
    section: &Section<'_>,
    known: (&[Directory], &[String]),
    several: bool,
    taken: &mut Taken,
) -> Option<TokenIssuer> {
    let node = section.required("issuer", "write the exact value of `iss` in its tokens");
    let issuer = node.as_ref().and_then(word);
    if let (Some(node), Some(issuer)) = (&node, &issuer) {
        taken.issuers.check(issuer, node);
        if is_shared(issuer) {
            node.problem("tokens of every tenant would be accepted: write the issuer with your tenant's id");
        }
    }
    let introspection = section.get("introspection").map(|node| {
        if let Some(first) = &taken.introspection {
            node.problem(format!("an opaque token does not show its issuer, and {first} has one: remove this"));
        }
        taken.introspection = Some(node.key().to_owned());
        node.section(introspection).flatten()
    });
    let keys = keys(section, issuer.as_deref(), introspection.is_some());
    let (audience, clients) = (words(section, "audience"), words(section, "clients"));
    if section.get("audience").is_none() {
        if section.get("clients").is_none() {
            section.problem(
                "audience",
                "missing: write the value of `aud` that tokens for mail have (or `clients`, whose tokens are \
                 accepted); a token for any other service would be accepted otherwise",
            );
        } else {
            section.warn(
                "clients",
                "without `audience`, tokens that these clients have for other services are accepted as well",
            );
        }
    }
    let scopes = words(section, "scopes");
    let hint = "write the claim that names the user, such as `sub`";
    let login_claim = section.required("login_claim", hint).as_ref().and_then(word);
    if let Some(claim) = login_claim.as_deref().filter(|claim| MUTABLE.contains(claim)) {
        let message = format!(
            "`{claim}` can be changed, and may be another user's later: an immutable claim is safer, such as `sub` \
             with a `filter` by entryUUID"
        );
        section.warn("login_claim", message);
    }
    let answers = [("accept", true), ("refuse", false)];
    let unverified = section.get("unverified_email");
    if unverified.is_some() && login_claim.as_deref().is_some_and(|claim| claim != "email") {
        section.warn("unverified_email", "without effect: `login_claim` is not `email`; remove it");
    }
    let unverified_email = unverified.map_or(Some(false), |node| node.word(&answers));
    let directory = directory(section, known);
    if let (Some(None), Some(claim), [_, _, ..]) = (&directory, login_claim.as_deref(), known.1)
        && !MUTABLE.contains(&claim)
    {
        let message = format!(
            "with several directories, the domain of the value chooses: if `{claim}` has none, write `directory`, or its \
             users are looked up where names without a domain are"
        );
        section.warn("login_claim", message);
    }
    let filter = section.get("filter").map(|node| node.parsed(template::parse_claim_filter));
    let domains = domains(section, several);
    let domain_attribute = section.get("domain_attribute");
    let domain_attribute = domain_attribute.map_or(Some("mail".into()), |node| node.parsed(names::attribute));
    let ca = section.get("ca").map(|node| node.path());
    let proxy = section.get("proxy").map(|node| node.parsed(proxy));
    if let (Some(Some(KeySource::File(_))), None) = (&keys, &introspection) {
        for key in ["ca", "proxy"].into_iter().filter(|key| section.get(key).is_some()) {
            section.warn(key, "without effect: the keys are in a file; remove it");
        }
    }
    Some(TokenIssuer {
        issuer: issuer?,
        keys: keys?,
        introspection: required_if_given(introspection)?,
        audience: audience?,
        clients: clients?,
        scopes: scopes?,
        login_claim: login_claim?,
        unverified_email: unverified_email?,
        directory: directory?,
        filter: required_if_given(filter)?,
        domains: domains?,
        domain_attribute: domain_attribute?,
        ca: required_if_given(ca)?,
        proxy: required_if_given(proxy)?,
    })
}

/// Absent is sound; a value that could not be read is not.
fn required_if_given<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        Some(value) => value.map(Some),
        None => Some(None),
    }
}

/// A text that a token may hold.
pub(super) fn word(node: &Node<'_>) -> Option<String> {
    let text = node.text()?;
    if text.is_empty() || text.len() > LONGEST || text.trim() != text {
        node.problem(format!("write 1 to {LONGEST} bytes without blanks around them"));
        return None;
    }
    Some(text.to_owned())
}

/// A list of such texts, or one; absent: none.
fn words(section: &Section<'_>, key: &'static str) -> Option<Vec<String>> {
    let Some(node) = section.get(key) else { return Some(Vec::new()) };
    let items = node.one_or_more()?;
    let mut unique = Unique::default();
    let read = |item: &Node<'_>| {
        let text = word(item)?;
        unique.check(&text, item);
        Some(text)
    };
    let words: Vec<_> = items.iter().map(read).collect();
    words.into_iter().collect()
}

/// `jwks`, `discovery`, or neither where there is `introspection`; otherwise discovery at the issuer's own URL.
fn keys(section: &Section<'_>, issuer: Option<&str>, introspected: bool) -> Option<Option<KeySource>> {
    let source = match (section.get("jwks"), section.get("discovery")) {
        (Some(_), Some(_)) => {
            section.problem("discovery", "takes the place of `jwks`: keep one of them");
            return None;
        }
        (Some(node), None) if node.text()?.contains("://") => KeySource::Url(node.parsed(HttpUrl::parse)?),
        (Some(node), None) => KeySource::File(node.path()?),
        (None, Some(node)) => KeySource::Discovery(node.parsed(document)?),
        (None, None) if introspected => return Some(None),
        (None, None) => match document(issuer?) {
            Ok(url) => KeySource::Discovery(url),
            Err(_) => {
                section.problem("jwks", "missing: the issuer is no https:// URL, so say where its keys are");
                return None;
            }
        },
    };
    let (KeySource::Url(url) | KeySource::Discovery(url)) = &source else { return Some(Some(source)) };
    if is_shared(url.as_str()) {
        let key = if matches!(source, KeySource::Url(_)) { "jwks" } else { "discovery" };
        section.problem(key, "the keys of every tenant are there: write the URL with your tenant's id");
        return None;
    }
    Some(Some(source))
}

/// The URL of the discovery document: as it stands if its path says so, otherwise below that.
fn document(text: &str) -> Result<HttpUrl, UrlError> {
    let url = HttpUrl::parse(text)?;
    if url.path.contains("/.well-known/") {
        return Ok(url);
    }
    HttpUrl::parse(&format!("{}{DISCOVERY}", text.strip_suffix('/').unwrap_or(text)))
}

/// Whether this is the issuer of all tenants of Microsoft Entra ID.
fn is_shared(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let mut parts = rest.split('/');
    let host = parts.next().unwrap_or_default().to_ascii_lowercase();
    let first = parts.next().unwrap_or_default();
    let is_entra = host.contains("login.microsoftonline.") || host == "sts.windows.net" || host == "login.windows.net";
    is_entra && SHARED.iter().any(|shared| shared.eq_ignore_ascii_case(first))
}

fn domains(section: &Section<'_>, several: bool) -> Option<Vec<String>> {
    let Some(node) = section.get("domains") else {
        if several {
            let message = "missing: with several issuers, each may name the users of its own domains alone, such as \
                           [example.com]";
            section.problem("domains", message);
            return None;
        }
        return Some(Vec::new());
    };
    let items = node.one_or_more()?;
    let mut unique = Unique::default();
    let read = |item: &Node<'_>| {
        let name = item.parsed(names::own_name)?.to_ascii_lowercase();
        unique.check(&name, item);
        Some(name)
    };
    let domains: Vec<_> = items.iter().map(read).collect();
    domains.into_iter().collect()
}

fn introspection(section: &Section<'_>) -> Option<Introspection> {
    let url =
        section.required("url", "write the introspection endpoint's URL").and_then(|node| node.parsed(HttpUrl::parse));
    let client_id = section.required("client_id", "write the name that usher has at the issuer");
    let client_id = client_id.as_ref().and_then(word);
    let file = section.required("client_secret_file", "name the file with the secret of `client_id`");
    let client_secret_file = file.and_then(|node| node.path());
    Some(Introspection { url: url?, client_id: client_id?, client_secret_file: client_secret_file? })
}

/// `http://host:port`, or host and port alone.
fn proxy(text: &str) -> Result<Address, ProxyError> {
    let rest = text.strip_prefix("http://").unwrap_or(text);
    let (host, port) = names::host_port(rest.strip_suffix('/').unwrap_or(rest)).map_err(|_| ProxyError)?;
    Ok(Address { host, port })
}

#[derive(Debug, thiserror::Error)]
#[error("write host and port of an HTTP proxy, such as \"http://proxy.example.com:3128\", without a name or password")]
struct ProxyError;
