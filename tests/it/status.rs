//! The status page in a real browser: its content, on any screen, with and without its script.

use serde_json::json;

use crate::kit::browser::Browser;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::Slapd;
use crate::kit::{Config, Imap, Usher, password_of};

/// A session of alice, a refused login, and a backend that is down.
fn busy() -> (Usher, Imap) {
    let mut config = Config::shared().backend("server5", 9, &["server5"]);
    config.change("/routing/backends/2/probe", "tcp");
    config.change("/routing/backends/2/probe_interval", "1s");
    let usher = Usher::start(config);
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", &password_of("alice")).ok();
    Imap::tls(usher.imaps_port()).login("mallory-typed-this", "wrong").is("NO");
    usher.login("mallory-typed-this");
    usher.wait_metric("usher_connections", &[], 1.0);
    usher.wait_metric("usher_backend_up", &[("backend", "server5")], 0.0);
    (usher, alice)
}

/// The text of the table row that begins with this.
fn row(browser: &Browser, about: &str) -> String {
    let script = format!(
        "return [...document.querySelectorAll('tbody tr')].map(row => row.innerText.replace(/\\s+/g, ' ').trim())
           .find(row => row.startsWith('{about}'))"
    );
    browser.run(&script).as_str().unwrap_or_else(|| panic!("no row {about}")).to_owned()
}

fn shows_everything(browser: &Browser) {
    assert_eq!(browser.run("return document.title"), "usher on usher.example.com");
    let headings = browser.run("return [...document.querySelectorAll('h1, h2')].map(it => it.innerText)");
    let wanted = [
        "usher on usher.example.com",
        "Problems",
        "At a glance",
        "Backends",
        "Directory servers",
        "Logins and refusals",
        "Time per phase of a login",
        "Limits",
        "Certificates",
    ];
    assert_eq!(headings, json!(wanted));
    let headline = browser.run("return document.querySelector('#stage').innerText");
    assert!(headline.as_str().unwrap().contains("server5 is down since "), "{headline}");
    assert!(row(browser, "server3").starts_with("server3 ● up 1 "), "{}", row(browser, "server3"));
    assert!(row(browser, "server4").starts_with("server4 ● up 0 "), "{}", row(browser, "server4"));
    assert!(row(browser, "server5").starts_with("server5 ✖ down for "), "{}", row(browser, "server5"));
    assert!(row(browser, "ldap").contains("● in use"), "{}", row(browser, "ldap"));
    assert!(row(browser, "Connections").starts_with("Connections 1 "), "{}", row(browser, "Connections"));
    assert!(row(browser, "usher.example.com").contains(" days left"), "{}", row(browser, "usher.example.com"));
    let charts =
        browser.run("return [...document.querySelectorAll('.charts svg')].map(it => it.getAttribute('aria-label'))");
    let charts: Vec<&str> = charts.as_array().unwrap().iter().map(|chart| chart.as_str().unwrap()).collect();
    assert!(charts[0].starts_with("logged in: 1 in 30 minutes"), "{charts:?}");
    assert!(charts[1].starts_with("unknown user: 1 in 30 minutes"), "{charts:?}");
    let phases = [
        "TLS handshake of the client",
        "directory: search",
        "directory: bind",
        "backend: connection",
        "backend: login",
    ];
    assert_eq!(charts.len(), 2 + phases.len(), "{charts:?}");
    for (chart, phase) in charts[2..].iter().zip(phases) {
        assert!(
            chart.starts_with(phase) && chart.contains(": median ") && chart.contains("99\u{a0}% within "),
            "{chart}"
        );
    }
    // Every table has a caption, and every cell its row and column headers.
    let tables = browser.run(
        "return [...document.querySelectorAll('table')].every(it => it.caption.innerText && it.tBodies[0].rows.length
           && [...it.rows].every(row => row.cells[0].scope)
           && [...it.tHead.rows[0].cells].every(cell => cell.scope == 'col'))",
    );
    assert_eq!(tables, true);
}

#[test]
fn status_page_shows_the_state_and_names_no_user() {
    let (usher, _alice) = busy();
    let (status, page) = usher.http("/");
    assert_eq!(status, 200);
    for word in ["alice", "mallory", "ou=people"] {
        assert!(!page.contains(word), "{word} in\n{page}");
    }
    // Nothing is fetched from elsewhere, and the policy forbids it for any injected content.
    for word in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(word), "{word} in\n{page}");
    }

    let browser = Browser::start();
    let url = format!("http://{}/", usher.side_port());
    browser.open_without_script(&url);
    shows_everything(&browser);
    assert_eq!(browser.run("return document.querySelectorAll('button').length"), 0, "its script has run");
    assert_eq!(browser.console(), [""; 0]);

    browser.open(&url);
    shows_everything(&browser);
    assert_eq!(
        browser.run("return [...document.querySelectorAll('button')].map(it => it.innerText)"),
        json!(["Pause"])
    );
    let policy = browser.run("return fetch('/').then(answer => answer.headers.get('content-security-policy'))");
    let policy = policy.as_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    // An injected inline style or script has no effect.
    let injected = browser.run(
        "const it = document.createElement('p'); it.innerHTML = '<b style=\"display: none\" onclick=\"document.title = 1\">x</b>';
         document.body.append(it); it.firstChild.click(); return [document.title, getComputedStyle(it.firstChild).display]",
    );
    assert_eq!(injected, json!(["usher on usher.example.com", "inline"]));
    let reported = browser.console();
    assert!(
        !reported.is_empty()
            && reported.iter().all(|line| line["message"].as_str().unwrap().contains("Content Security Policy")),
        "{reported:?}"
    );
}

#[test]
fn status_page_refreshes_can_be_paused_and_shows_a_lost_connection() {
    let (usher, _alice) = busy();
    let browser = Browser::start();
    browser.open(&format!("http://{}/", usher.side_port()));
    let mut bob = Imap::tls(usher.imaps_port());
    bob.login("bob", &password_of("bob")).ok();
    browser.wait(
        "return [...document.querySelectorAll('tbody tr')].some(row => /^server4\\s+●\\s+up\\s+1\\s/.test(row.innerText))",
    );
    assert_eq!(browser.run("return document.querySelectorAll('main').length"), 1);
    assert_eq!(browser.run("return document.querySelector('#word').innerText"), "The page refreshes automatically.");
    assert_eq!(browser.console(), [""; 0]);
    browser.run("document.querySelector('button').click()");
    assert_eq!(browser.run("return document.querySelector('button').innerText"), "Resume");
    browser.run("document.querySelector('button').click()");
    drop(usher);
    browser.wait("return document.querySelector('#word').innerText.startsWith('usher does not answer')");
    assert!(row(&browser, "server4").contains("● up 1 "), "what was there stays");
}

#[test]
fn status_page_fits_small_screens_and_dark_mode() {
    let (usher, _alice) = busy();
    let browser = Browser::start();
    let url = format!("http://{}/", usher.side_port());
    let mut backgrounds = Vec::new();
    for (width, scheme) in [(1_280, "light"), (1_280, "dark"), (360, "light"), (360, "dark")] {
        browser.screen(width, scheme);
        browser.open(&url);
        // A phone would widen its viewport for overflowing content.
        let fits = browser.run("return [innerWidth, document.documentElement.scrollWidth <= innerWidth]");
        assert_eq!(fits, json!([width, true]), "it scrolls sideways");
        let outside = browser.run(
            "return [...document.querySelectorAll('main *')].filter(it => it.getBoundingClientRect().right > innerWidth).map(it => it.outerHTML)",
        );
        assert_eq!(outside, json!([]), "invisible at {width}");
        // WCAG 2: a contrast of 4.5 to 1 for text on its background.
        let faint = browser.run(
            "const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(x => x / 255)
               .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
             const behind = it => { for (; it; it = it.parentElement) { const colour = getComputedStyle(it).backgroundColor;
               if (colour != 'rgba(0, 0, 0, 0)') return colour; } };
             return [...document.querySelectorAll('body *')].filter(it => it.innerText && !it.children.length).filter(it => {
               const [one, other] = [light(getComputedStyle(it).color), light(behind(it))].sort((a, b) => b - a);
               return (one + 0.05) / (other + 0.05) < 4.5; }).map(it => it.outerHTML)",
        );
        assert_eq!(faint, json!([]), "too faint, {scheme}");
        backgrounds.push(browser.run("return getComputedStyle(document.body).backgroundColor"));
        if let Some(folder) = std::env::var_os("USHER_SCREENSHOTS") {
            browser.screenshot(&std::path::Path::new(&folder).join(format!("{width}-{scheme}.png")));
        }
    }
    assert!(
        backgrounds[0] == backgrounds[2] && backgrounds[1] == backgrounds[3] && backgrounds[0] != backgrounds[1],
        "{backgrounds:?}"
    );
    assert_eq!(browser.console(), [""; 0]);
}

/// The headline is the worst of what the page shows, with since when and what to do.
#[test]
fn headline_is_the_outage_of_the_only_directory_server() {
    let mut slapd = Slapd::private();
    let usher = Usher::start(Config::with_directory(&slapd).scripted(&Scripted::accepting()));
    let headline = || {
        let page = usher.http("/").1;
        let (_, rest) = page.split_once("<p id=\"stage\">").unwrap();
        (rest.split_once("</p>").unwrap().0.to_owned(), page)
    };
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    assert!(headline().0.ends_with("serving</span>"), "{}", headline().0);
    slapd.stop();
    Imap::tls(usher.imaps_port()).login("bob", "wrong").is("NO [UNAVAILABLE]");
    let (said, page) = headline();
    assert!(said.contains("class=\"bad\"") && said.contains("LDAP unreachable since "), "{said}");
    assert!(said.contains(" UTC, serving cached users"), "{said}");
    assert!(page.contains("<h2>Problems</h2>") && page.contains("usher check --connect"), "{page}");
    slapd.start_again();
    usher.wait_log("directory reachable again", |_| true);
    assert!(headline().0.ends_with("serving</span>"), "{}", headline().0);
}
