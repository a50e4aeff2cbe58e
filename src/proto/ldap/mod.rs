//! The pure syntax of LDAP: BER, filters and DN templates.

pub mod ber;
pub mod template;
