//! The pure syntax of LDAP: BER, filters and DN templates.

pub(crate) mod ber;
pub(crate) mod template;
