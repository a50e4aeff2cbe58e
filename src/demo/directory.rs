//! A small directory that speaks real LDAP (RFC 4511): bind, search, modify and WhoAmI over the
//! entries of an LDIF, enough for usher, `ldapsearch`, `ldapwhoami` and `ldapmodify`.
//!
//! It is for the demo only: passwords are compared in clear, there is no TLS, changes live in
//! memory and end with the process. It never shows a `userPassword`, and a bad peer ends nothing
//! but its own connection. Filters follow RFC 4511 section 4.5.1.7: true, false or undefined.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use futures_util::{SinkExt as _, StreamExt as _};
use ldap3_proto::LdapCodec;
use ldap3_proto::control::LdapControl;
use ldap3_proto::proto::{
    LdapBindCred, LdapBindRequest, LdapBindResponse, LdapExtendedResponse, LdapFilter, LdapModify, LdapModifyRequest,
    LdapModifyType, LdapMsg, LdapOp, LdapPartialAttribute, LdapResult, LdapResultCode, LdapSearchRequest,
    LdapSearchResultEntry, LdapSearchScope, LdapSubstringFilter, OID_WHOAMI,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::ldif::{Attribute, Entry};
use super::{IDLE, WRITE};

/// Compared at a bind and never shown, neither as a value nor through a filter.
const PASSWORD: &str = "userPassword";

/// The entries, shared by every connection and by the demo's mail servers.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    entries: Arc<RwLock<Vec<Entry>>>,
    writer: Arc<[String]>,
}

impl Directory {
    /// Takes over entries; who binds as `writer` (a DN) may modify them.
    #[must_use]
    pub(crate) fn new(entries: Vec<Entry>, writer: &str) -> Self {
        Self { entries: Arc::new(RwLock::new(entries)), writer: normal(writer).into() }
    }

    /// Serves LDAP until the task is dropped.
    pub(crate) async fn serve(self, listener: TcpListener) {
        super::serve(listener, move |stream| converse(stream, self.clone())).await;
    }

    /// The `uid` of the user with this `uid` or `mail` and this password.
    #[must_use]
    pub(crate) fn verify(&self, login: &str, password: &str) -> Option<String> {
        self.user(login, |entry| entry.values(PASSWORD).iter().any(|value| value == password.as_bytes()))
    }

    /// The `uid` of the one user with this `uid` or `mail`.
    #[must_use]
    pub(crate) fn known(&self, login: &str) -> Option<String> {
        self.user(login, |_| true)
    }

    fn user(&self, login: &str, is_right: impl FnOnce(&Entry) -> bool) -> Option<String> {
        let wanted = login.to_lowercase();
        let entries = self.read();
        let mut found = entries
            .iter()
            .filter(|entry| ["uid", "mail"].iter().any(|name| holds(entry, name, |value| value == wanted)));
        let (entry, None) = (found.next()?, found.next()) else { return None };
        is_right(entry)
            .then(|| entry.values("uid").first().map(|uid| String::from_utf8_lossy(uid).into_owned()))
            .flatten()
    }

    /// A panic while writing cannot leave half an entry behind (changes are swapped in whole), so
    /// a poisoned lock is as good as any.
    fn read(&self) -> RwLockReadGuard<'_, Vec<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client, until it unbinds, falls silent or says something that is no LDAP.
async fn converse(stream: TcpStream, directory: Directory) {
    let mut wire = Framed::new(stream, LdapCodec::default());
    let mut session = Session { directory, bound: None };
    while let Ok(Some(Ok(request))) = timeout(IDLE, wire.next()).await {
        let msgid = request.msgid;
        let Some(answers) = session.answer(&request) else { return };
        for answer in answers {
            let sent = timeout(WRITE, wire.send(LdapMsg::new(msgid, answer))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }
}

/// What one connection knows: who it is.
struct Session {
    directory: Directory,
    bound: Option<String>,
}

impl Session {
    /// The answers to a request, in order; `None` closes the connection.
    fn answer(&mut self, request: &LdapMsg) -> Option<Vec<LdapOp>> {
        let op = &request.op;
        // RFC 4511 section 4.1.11: a critical control that is not known must not be passed over.
        if request.ctrl.iter().any(|control| matches!(control, LdapControl::Unknown { criticality: true, .. })) {
            let code = LdapResultCode::UnavailableCriticalExtension;
            return Some(reply(op, code, "this control is not known").into_iter().collect());
        }
        let (code, text) = match op {
            LdapOp::BindRequest(bind) => self.bind(bind),
            LdapOp::SearchRequest(search) => {
                let (mut answers, code) = self.search(search);
                answers.extend(reply(op, code, ""));
                return Some(answers);
            }
            LdapOp::ModifyRequest(modify) => self.modify(modify),
            LdapOp::ExtendedRequest(extended) if extended.name == OID_WHOAMI => {
                let authzid = self.bound.as_ref().map(|dn| format!("dn:{dn}")).unwrap_or_default();
                let res = result(LdapResultCode::Success, "");
                let answer = LdapExtendedResponse { res, name: None, value: Some(authzid.into_bytes()) };
                return Some(vec![LdapOp::ExtendedResponse(answer)]);
            }
            // RFC 4511 section 4.12: an unknown name is a protocolError. StartTLS is one of them.
            LdapOp::ExtendedRequest(_) => (LdapResultCode::ProtocolError, "this extended operation is not known"),
            LdapOp::AddRequest(_) | LdapOp::DelRequest(_) | LdapOp::ModifyDNRequest(_) | LdapOp::CompareRequest(_) => {
                (LdapResultCode::UnwillingToPerform, "the demo directory does not do this")
            }
            // Every answer is out before the next request is read: there is nothing to abandon.
            LdapOp::AbandonRequest(_) => return Some(Vec::new()),
            LdapOp::UnbindRequest
            | LdapOp::BindResponse(_)
            | LdapOp::SearchResultEntry(_)
            | LdapOp::SearchResultDone(_)
            | LdapOp::SearchResultReference(_)
            | LdapOp::ModifyResponse(_)
            | LdapOp::AddResponse(_)
            | LdapOp::DelResponse(_)
            | LdapOp::ModifyDNResponse(_)
            | LdapOp::CompareResult(_)
            | LdapOp::ExtendedResponse(_)
            | LdapOp::IntermediateResponse(_) => return None,
        };
        Some(reply(op, code, text).into_iter().collect())
    }

    fn bind(&mut self, bind: &LdapBindRequest) -> (LdapResultCode, &'static str) {
        // RFC 4511 section 4.2.1: from here on the connection is anonymous unless the bind succeeds.
        self.bound = None;
        if bind.version != 3 {
            return (LdapResultCode::ProtocolError, "LDAP version 3 only");
        }
        let password = match &bind.cred {
            LdapBindCred::Simple(password) => password,
            LdapBindCred::SASL(_) | LdapBindCred::Unsupported => {
                return (LdapResultCode::AuthMethodNotSupported, "simple binds only");
            }
        };
        let dn = normal(&bind.dn);
        match (dn.is_empty(), password.is_empty()) {
            (true, true) => return (LdapResultCode::Success, ""),
            // RFC 4513 section 5.1.2: a name without a password proves nothing.
            (false, true) => return (LdapResultCode::UnwillingToPerform, "unauthenticated bind"),
            (_, false) => {}
        }
        let entries = self.directory.read();
        let found = entries.iter().find(|entry| normal(&entry.dn) == dn);
        match found.filter(|entry| entry.values(PASSWORD).iter().any(|value| value == password.as_bytes())) {
            Some(entry) => {
                self.bound = Some(entry.dn.clone());
                (LdapResultCode::Success, "")
            }
            None => (LdapResultCode::InvalidCredentials, ""),
        }
    }

    fn search(&self, search: &LdapSearchRequest) -> (Vec<LdapOp>, LdapResultCode) {
        let entries = self.directory.read();
        let base = normal(&search.base);
        if base.is_empty() && search.scope == LdapSearchScope::Base {
            return (vec![shown(&root_dse(&entries), search)], LdapResultCode::Success);
        }
        if self.bound.is_none() {
            return (Vec::new(), LdapResultCode::InsufficentAccessRights);
        }
        if !base.is_empty() && !entries.iter().any(|entry| normal(&entry.dn) == base) {
            return (Vec::new(), LdapResultCode::NoSuchObject);
        }
        let mut found = entries.iter().filter(|entry| {
            in_scope(&normal(&entry.dn), &base, &search.scope) && matches(&search.filter, entry) == Some(true)
        });
        let limit = usize::try_from(search.sizelimit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let answers = found.by_ref().take(limit).map(|entry| shown(entry, search)).collect();
        let code = if found.next().is_some() { LdapResultCode::SizeLimitExceeded } else { LdapResultCode::Success };
        (answers, code)
    }

    fn modify(&self, modify: &LdapModifyRequest) -> (LdapResultCode, &'static str) {
        if self.bound.as_deref().map(normal).as_deref() != Some(&*self.directory.writer) {
            return (LdapResultCode::InsufficentAccessRights, "only the demo's admin may change entries");
        }
        let dn = normal(&modify.dn);
        let mut entries = self.directory.entries.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = entries.iter_mut().find(|entry| normal(&entry.dn) == dn) else {
            return (LdapResultCode::NoSuchObject, "");
        };
        // RFC 4511 section 4.6: all changes or none.
        let mut changed = entry.clone();
        for change in &modify.changes {
            if let Err(code) = apply(&mut changed, change) {
                return (code, "");
            }
        }
        *entry = changed;
        (LdapResultCode::Success, "")
    }
}

/// Makes one change of a modify request.
fn apply(entry: &mut Entry, change: &LdapModify) -> Result<(), LdapResultCode> {
    let LdapPartialAttribute { atype: name, vals: values } = &change.modification;
    let named = |attribute: &Attribute| attribute.name.eq_ignore_ascii_case(name);
    match change.operation {
        LdapModifyType::Add => {}
        LdapModifyType::Replace => match entry.attributes.iter_mut().find(|attribute| named(attribute)) {
            // In place, so that the attribute keeps its spelling whatever the client's is.
            Some(attribute) if !values.is_empty() => {
                attribute.values.clone_from(values);
                return Ok(());
            }
            _ => entry.attributes.retain(|attribute| !named(attribute)),
        },
        LdapModifyType::Delete => {
            let attribute = entry.attributes.iter_mut().find(|attribute| named(attribute));
            let attribute = attribute.ok_or(LdapResultCode::NoSuchAttribute)?;
            if !values.iter().all(|value| attribute.values.contains(value)) {
                return Err(LdapResultCode::NoSuchAttribute);
            }
            attribute.values.retain(|value| !values.is_empty() && !values.contains(value));
            entry.attributes.retain(|attribute| !attribute.values.is_empty());
            return Ok(());
        }
        LdapModifyType::Increment => return Err(LdapResultCode::UnwillingToPerform),
    }
    for value in values {
        entry.push(name, value.clone());
    }
    Ok(())
}

/// What RFC 4512 section 5.1 wants a server to say about itself.
fn root_dse(entries: &[Entry]) -> Entry {
    let mut root = Entry { dn: String::new(), attributes: Vec::new() };
    root.push("objectClass", b"top".to_vec());
    if let Some(suffix) = entries.first() {
        root.push("namingContexts", suffix.dn.clone().into_bytes());
    }
    root.push("supportedLDAPVersion", b"3".to_vec());
    root.push("supportedExtension", OID_WHOAMI.as_bytes().to_vec());
    root.push("vendorName", b"usher demo directory".to_vec());
    root
}

/// An entry as far as the search asks for it (RFC 4511 section 4.5.1.8), names spelt as stored.
fn shown(entry: &Entry, search: &LdapSearchRequest) -> LdapOp {
    let asked = |name: &str| {
        search.attrs.is_empty() || search.attrs.iter().any(|wanted| wanted == "*" || wanted.eq_ignore_ascii_case(name))
    };
    let visible = entry.attributes.iter().filter(|attribute| !attribute.name.eq_ignore_ascii_case(PASSWORD));
    let attributes = visible.filter(|attribute| asked(&attribute.name)).map(|attribute| LdapPartialAttribute {
        atype: attribute.name.clone(),
        vals: if search.typesonly { Vec::new() } else { attribute.values.clone() },
    });
    LdapOp::SearchResultEntry(LdapSearchResultEntry { dn: entry.dn.clone(), attributes: attributes.collect() })
}

/// A DN as its RDNs, without regard to case and to spaces around `,` and `=`. Escapes stay as they
/// are: nothing in the demo is spelt in two ways.
fn normal(dn: &str) -> Vec<String> {
    let (mut rdns, mut rdn, mut escaped) = (Vec::new(), String::new(), false);
    for letter in dn.chars() {
        if letter == ',' && !escaped {
            rdns.push(std::mem::take(&mut rdn));
        } else {
            rdn.push(letter);
        }
        escaped = letter == '\\' && !escaped;
    }
    if !dn.trim().is_empty() {
        rdns.push(rdn);
    }
    let tidy = |rdn: &String| match rdn.split_once('=') {
        Some((name, value)) => format!("{}={}", name.trim(), value.trim()).to_lowercase(),
        None => rdn.trim().to_lowercase(),
    };
    rdns.iter().map(tidy).collect()
}

fn in_scope(dn: &[String], base: &[String], scope: &LdapSearchScope) -> bool {
    let below = dn.ends_with(base);
    match scope {
        LdapSearchScope::Base => dn == base,
        LdapSearchScope::OneLevel => below && dn.len() == base.len() + 1,
        LdapSearchScope::Subtree => below,
        LdapSearchScope::Children => below && dn.len() > base.len(),
    }
}

/// Whether a value of the attribute, in lower case, passes the test.
fn holds(entry: &Entry, name: &str, test: impl Fn(&str) -> bool) -> bool {
    entry.values(name).iter().any(|value| test(&String::from_utf8_lossy(value).to_lowercase()))
}

/// Evaluates a filter; `None` is RFC 4511's undefined. The codec bounds the depth.
fn matches(filter: &LdapFilter, entry: &Entry) -> Option<bool> {
    // A password must not be guessed letter by letter through filters.
    let open = |name: &str| !name.eq_ignore_ascii_case(PASSWORD);
    match filter {
        LdapFilter::And(parts) => combine(parts, entry, false),
        LdapFilter::Or(parts) => combine(parts, entry, true),
        LdapFilter::Not(inner) => matches(inner, entry).map(|truth| !truth),
        LdapFilter::Present(name) => open(name).then(|| !entry.values(name).is_empty()),
        LdapFilter::Equality(name, value) | LdapFilter::Approx(name, value) => {
            let wanted = value.to_lowercase();
            open(name).then(|| holds(entry, name, |value| value == wanted))
        }
        LdapFilter::Substring(name, pattern) => {
            open(name).then(|| holds(entry, name, |value| has_parts(value, pattern)))
        }
        LdapFilter::GreaterOrEqual(..) | LdapFilter::LessOrEqual(..) | LdapFilter::Extensible(_) => None,
    }
}

/// `deciding` (true for or, false for and) wins, then undefined, then the other truth.
fn combine(parts: &[LdapFilter], entry: &Entry, deciding: bool) -> Option<bool> {
    let truths: Vec<_> = parts.iter().map(|part| matches(part, entry)).collect();
    if truths.contains(&Some(deciding)) {
        Some(deciding)
    } else if truths.contains(&None) {
        None
    } else {
        Some(!deciding)
    }
}

fn has_parts(value: &str, pattern: &LdapSubstringFilter) -> bool {
    let mut rest = value;
    if let Some(initial) = &pattern.initial {
        let Some(behind) = rest.strip_prefix(initial.to_lowercase().as_str()) else { return false };
        rest = behind;
    }
    for part in &pattern.any {
        let Some((_, behind)) = rest.split_once(part.to_lowercase().as_str()) else { return false };
        rest = behind;
    }
    pattern.final_.as_ref().is_none_or(|end| rest.ends_with(end.to_lowercase().as_str()))
}

fn result(code: LdapResultCode, text: &str) -> LdapResult {
    LdapResult { code, matcheddn: String::new(), message: text.to_owned(), referral: Vec::new() }
}

/// A result in the response that belongs to the request; `None` for what has no response.
fn reply(request: &LdapOp, code: LdapResultCode, text: &str) -> Option<LdapOp> {
    let res = result(code, text);
    Some(match request {
        LdapOp::BindRequest(_) => LdapOp::BindResponse(LdapBindResponse { res, saslcreds: None }),
        LdapOp::SearchRequest(_) => LdapOp::SearchResultDone(res),
        LdapOp::ModifyRequest(_) => LdapOp::ModifyResponse(res),
        LdapOp::AddRequest(_) => LdapOp::AddResponse(res),
        LdapOp::DelRequest(_) => LdapOp::DelResponse(res),
        LdapOp::ModifyDNRequest(_) => LdapOp::ModifyDNResponse(res),
        LdapOp::CompareRequest(_) => LdapOp::CompareResult(res),
        LdapOp::ExtendedRequest(_) => LdapOp::ExtendedResponse(LdapExtendedResponse { res, name: None, value: None }),
        LdapOp::UnbindRequest
        | LdapOp::AbandonRequest(_)
        | LdapOp::BindResponse(_)
        | LdapOp::SearchResultEntry(_)
        | LdapOp::SearchResultDone(_)
        | LdapOp::SearchResultReference(_)
        | LdapOp::ModifyResponse(_)
        | LdapOp::AddResponse(_)
        | LdapOp::DelResponse(_)
        | LdapOp::ModifyDNResponse(_)
        | LdapOp::CompareResult(_)
        | LdapOp::ExtendedResponse(_)
        | LdapOp::IntermediateResponse(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use ldap3::{LdapConnAsync, Mod, Scope, SearchEntry};
    use ldap3_proto::parse_ldap_filter_str;

    use super::super::{ADMIN, ADMIN_PASSWORD, LDIF, ldif};
    use super::*;

    const PEOPLE: &str = "ou=people,dc=demo,dc=example";

    fn demo() -> Directory {
        Directory::new(ldif::parse(LDIF).unwrap(), ADMIN)
    }

    #[test]
    fn filters_are_true_false_or_undefined() {
        let entry = &ldif::parse("dn: uid=a,dc=x\nuid: Alice\nmail: alice@Demo.example\nuserPassword: s\n").unwrap()[0];
        for (filter, truth) in [
            ("(uid=alice)", Some(true)),
            ("(UID=ALICE)", Some(true)),
            ("(uid=bob)", Some(false)),
            ("(mailHost=*)", Some(false)),
            ("(mail=*)", Some(true)),
            ("(mail=ali*@*.EXAMPLE)", Some(true)),
            ("(mail=*demo*)", Some(true)),
            ("(mail=*example*example)", Some(false)),
            ("(|(uid=x)(mail=alice@demo.example))", Some(true)),
            ("(&(uid=alice)(!(mailHost=*)))", Some(true)),
            ("(&(uid=alice)(mailHost=*))", Some(false)),
            ("(uid>=a)", None),
            ("(!(uid>=a))", None),
            ("(|(uid>=a)(uid=alice))", Some(true)),
            ("(&(uid>=a)(uid=alice))", None),
            ("(userPassword=*)", None),
            ("(userPassword=s)", None),
            ("(!(userPassword=x*))", None),
        ] {
            assert_eq!(matches(&parse_ldap_filter_str(filter).unwrap(), entry), truth, "{filter}");
        }
    }

    #[test]
    fn names_are_compared_without_case_and_spaces() {
        assert_eq!(normal("UID = Alice , dc=X"), normal("uid=alice,dc=x"));
        assert_eq!(normal("cn=Arden\\, Alice,dc=x").len(), 2);
        assert!(normal(" ").is_empty());
        let (dn, base) = (normal("uid=a,ou=p,dc=x"), normal("dc=x"));
        assert!(in_scope(&dn, &base, &LdapSearchScope::Subtree));
        assert!(!in_scope(&dn, &base, &LdapSearchScope::OneLevel));
        assert!(in_scope(&dn, &normal("ou=p,dc=x"), &LdapSearchScope::OneLevel));
        assert!(!in_scope(&dn, &base, &LdapSearchScope::Base));
        assert!(!in_scope(&base, &base, &LdapSearchScope::Children));
        assert!(!in_scope(&normal("uid=a,dc=xx"), &base, &LdapSearchScope::Subtree));
    }

    #[test]
    fn only_the_valid_password_binds_a_user() {
        let directory = demo();
        assert_eq!(directory.verify("Alice.Arden@demo.example", "wonderland").as_deref(), Some("alice"));
        assert_eq!(directory.verify("alice", "Wonderland"), None);
        assert_eq!(directory.verify("alice", ""), None);
        assert_eq!(directory.verify("unknown", "wonderland"), None);
    }

    /// The directory on a real socket, spoken to with the client library that usher uses.
    #[tokio::test]
    async fn real_client_binds_searches_and_moves_a_user() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ldap://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(demo().serve(listener));
        let (connection, mut ldap) = LdapConnAsync::new(&url).await.unwrap();
        ldap3::drive!(connection);

        let bob = format!("uid=bob,{PEOPLE}");
        let code = |result: ldap3::LdapResult| result.rc;
        assert_eq!(code(ldap.simple_bind(&bob, "wrong").await.unwrap()), 49);
        assert_eq!(code(ldap.simple_bind(&bob, "").await.unwrap()), 53);
        assert_eq!(code(ldap.simple_bind("", "").await.unwrap()), 0);
        assert_eq!(ldap.search(PEOPLE, Scope::Subtree, "(uid=bob)", ["*"]).await.unwrap().1.rc, 50);
        let root =
            ldap.search("", Scope::Base, "(objectClass=*)", ["namingContexts"]).await.unwrap().success().unwrap();
        assert_eq!(SearchEntry::construct(root.0[0].clone()).attrs["namingContexts"], ["dc=demo,dc=example"]);

        assert_eq!(code(ldap.simple_bind("UID=Bob, ou=people,dc=demo,dc=example", "builder").await.unwrap()), 0);
        let (who, _) = ldap.extended(ldap3::exop::WhoAmI).await.unwrap().success().unwrap();
        assert_eq!(who.val.as_deref(), Some(format!("dn:{bob}").as_bytes()));
        let unknown = ldap3::exop::Exop { name: Some("1.2.3.4".into()), val: None };
        assert_eq!(ldap.extended(unknown).await.unwrap().1.rc, 2);
        let to3 = || vec![Mod::Replace("mailhost", ["server3"].into())];
        assert_eq!(code(ldap.modify(&bob, to3()).await.unwrap()), 50);

        assert_eq!(code(ldap.simple_bind(ADMIN, ADMIN_PASSWORD).await.unwrap()), 0);
        assert_eq!(code(ldap.modify("uid=unknown,dc=demo,dc=example", to3()).await.unwrap()), 32);
        assert_eq!(code(ldap.modify(&bob, to3()).await.unwrap()), 0);
        let asked = ["MAILHOST", "userPassword"];
        let found = ldap.search(PEOPLE, Scope::OneLevel, "(mail=bob@*)", asked).await.unwrap().success().unwrap().0;
        let entry = SearchEntry::construct(found[0].clone());
        assert_eq!(entry.attrs["mailHost"], ["server3"], "spelt as stored");
        assert!(!entry.attrs.contains_key("userPassword"));

        let limited = ldap3::SearchOptions::new().sizelimit(2);
        let result =
            ldap.with_search_options(limited).search(PEOPLE, Scope::Subtree, "(uid=*)", ["1.1"]).await.unwrap();
        assert_eq!((result.0.len(), result.1.rc), (2, 4));
        let critical = ldap3::controls::RawControl { ctype: "1.2.3.4".into(), crit: true, val: None };
        let refused = ldap.with_controls(critical).search(PEOPLE, Scope::Base, "(uid=*)", ["*"]).await.unwrap();
        assert_eq!(refused.1.rc, 12);
        serving.abort();
    }
}
