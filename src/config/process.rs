//! The sections of the process and its own ports: `admin`, `control`, `auth_http`, `process`, `log`; `config_reload`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::model::{Admin, AuthHttp, ClientAddress, ConfigReload, Control, Log, LogFormat, LogLevel, Process};
use super::names;
use super::raw::{Node, Section};
use super::section::{Addresses, networks};
use crate::base::net;

/// Where the side port is unless the config says otherwise.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9930);

/// Reads `config_reload`.
pub(super) fn config_reload(root: &Section<'_>) -> Option<ConfigReload> {
    let words = [("manual", ConfigReload::Manual), ("auto", ConfigReload::Auto)];
    root.get("config_reload").map_or(Some(ConfigReload::Manual), |node| node.word(&words))
}

/// Reads `admin`.
pub(super) fn admin(admin: &Section<'_>, addresses: &mut Addresses) -> Option<Admin> {
    let address = admin.get("address").map_or(Some(ADMIN), |node| addresses.read(&node));
    let hosts = admin
        .get("hosts")
        .map_or(Some(Vec::new()), |node| node.one_or_more()?.iter().map(|host| host.parsed(names::own_name)).collect());
    Some(Admin { address: address?, hosts: hosts? })
}

/// Reads `control`.
pub(super) fn control(control: &Section<'_>) -> Option<Control> {
    let node = control.required("path", "write the path of the socket, such as /run/usher/control.sock");
    let path = node.as_ref().and_then(Node::path);
    if let (Some(node), Some(path)) = (&node, &path)
        && path.as_os_str().len() > names::SOCKET_PATH
    {
        node.problem(format!("longer than {} bytes, which Unix sockets do not allow", names::SOCKET_PATH));
    }
    let group = control.get("group").map(|node| node.parsed(names::unix_group));
    Some(Control { path: path?, group: group.flatten() })
}

/// Reads `auth_http`.
pub(super) fn auth_http(auth_http: &Section<'_>, addresses: &mut Addresses) -> Option<AuthHttp> {
    let address = auth_http.required("address", "write an IP address and a port, such as \"127.0.0.1:9940\"");
    let address = address.and_then(|node| addresses.read(&node));
    let allow = auth_http.required("allow", "name the addresses of your nginx, which sees every password");
    let allow = allow.and_then(|node| networks(&node));
    let key_file = auth_http.get("key_file").map(|node| node.path());
    if allow.iter().flatten().any(|network| network.prefix_len() == 0) {
        auth_http.warn("allow", "any host may send requests and claim any client address");
    } else if key_file.is_none() && allow.iter().flatten().any(net::has_loopback) {
        auth_http.warn(
            "allow",
            "any user of this machine may send requests and claim any client address: set `key_file`, and send its \
             secret from nginx (`auth_http_header X-Auth-Key`)",
        );
    }
    if address.is_some_and(|address| !address.ip().to_canonical().is_loopback()) {
        auth_http.warn("address", "passwords cross the network from nginx to here in clear");
    }
    Some(AuthHttp { address: address?, allow: allow?, key_file: key_file.flatten() })
}

/// Reads `process`.
pub(super) fn process(process: &Section<'_>) -> Option<Process> {
    let user = process.get("user").map(|node| node.parsed(names::unix_user));
    let group = process.get("group");
    if let (Some(node), None) = (&group, &user) {
        node.problem("needs `user`: the user to become");
    }
    let group = group.map(|node| node.parsed(names::unix_group));
    let debug = process.flag("debug", false)?;
    Some(Process { user: user.flatten(), group: group.flatten(), debug })
}

/// Reads `log`.
pub(super) fn log(log: &Section<'_>) -> Option<Log> {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let format = log.get("format").map_or(Some(LogFormat::Text), |node| node.word(&formats));
    let level = log.get("level").map_or(Some(LogLevel::Info), |node| node.word(&levels));
    let parts = [("full", ClientAddress::Full), ("network", ClientAddress::Network)];
    let client_address = log.get("client_address").map_or(Some(ClientAddress::Full), |node| node.word(&parts));
    if client_address == Some(ClientAddress::Network) {
        log.warn(
            "client_address",
            "fail2ban, and whatever else bans by lines of the log, cannot ban a client: `throttle` counts by the whole \
             address all the same",
        );
    }
    Some(Log { format: format?, level: level?, client_address: client_address? })
}
