//! The measurements: logins, idle sessions, bulk transfers, and logins during bulk transfers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::client::{Endpoint, Session};
use super::proc::{Tree, kernel_kib};
use super::report::Figures;

const MIB: u64 = 1024 * 1024;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Size of each transfer in the mixed measurement.
const MIXED_CHUNK: u64 = 4 * MIB;
/// Number of sessions opened concurrently.
const OPENING: usize = 32;
/// Numbers of sessions at which memory is measured.
const STEPS: [usize; 7] = [1, 10, 100, 1_000, 3_000, 6_000, 9_000];
/// No login of a series starts later than this: with a starved server a series would take hours.
const LONGEST: Duration = Duration::from_secs(60);
/// There is no event when a server has finished its work after a login or a logout.
const SETTLE: Duration = Duration::from_secs(1);

/// The users that log in: `{}` in the name is replaced by `number` numbers from `first` on, in turn.
#[derive(Debug, Clone)]
pub(crate) struct Users {
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) first: usize,
    pub(crate) number: usize,
    /// Their tokens in place of passwords, if there are any: one for each number.
    pub(crate) tokens: Arc<Vec<String>>,
}

impl Users {
    fn login_command(&self, n: usize) -> String {
        let number = self.first + n % self.number;
        match self.tokens.get(number) {
            Some(token) => {
                let message = format!("n,,\x01auth=Bearer {token}\x01\x01");
                format!("AUTHENTICATE OAUTHBEARER {}", STANDARD.encode(message))
            }
            None => format!("LOGIN \"{}\" \"{}\"", self.name.replace("{}", &number.to_string()), self.password),
        }
    }
}

/// The target of the measurements.
pub(crate) struct Bench {
    /// One endpoint per client: each has its own tickets.
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) users: Users,
    pub(crate) tree: Tree,
    /// The stub behind the server, which counts its handshakes.
    pub(crate) stub: Option<Endpoint>,
}

/// Results of logins.
#[derive(Default)]
struct Logins {
    times: Vec<Duration>,
    resumed: usize,
    failed: usize,
    first_failure: Option<io::Error>,
    lasted: Duration,
}

impl Logins {
    fn take(&mut self, login: io::Result<(Duration, bool)>) {
        match login {
            Ok((time, resumed)) => {
                self.times.push(time);
                self.resumed += usize::from(resumed);
            }
            Err(error) => {
                self.failed += 1;
                self.first_failure.get_or_insert(error);
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.resumed += other.resumed;
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }

    /// The quantile `share` of the times, in milliseconds.
    fn ms(&self, share: f64) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = (times.len().saturating_sub(1) as f64 * share).round() as usize;
        times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1_000.0)
    }

    fn report(&self, figures: &mut Figures, prefix: &str) {
        figures.add(&format!("{prefix}p50"), "ms", self.ms(0.5));
        figures.add(&format!("{prefix}p95"), "ms", self.ms(0.95));
        figures.add(&format!("{prefix}p99"), "ms", self.ms(0.99));
        figures.add(&format!("{prefix}logins"), "", self.times.len() as f64);
        figures.add(&format!("{prefix}logins per second"), "/s", self.times.len() as f64 / self.lasted.as_secs_f64());
        figures.add(&format!("{prefix}failed"), "", self.failed as f64);
        if let Some(error) = &self.first_failure {
            figures.note(format!("first failure: {error}"));
        }
    }
}

/// A login and a logout; the time is measured from connecting to OK.
async fn timed_login(endpoint: &Endpoint, command: &str) -> io::Result<(Duration, bool)> {
    let began = Instant::now();
    let session = endpoint.login(command).await?;
    let took = began.elapsed();
    let resumed = session.resumed();
    session.logout().await?;
    Ok((took, resumed))
}

impl Bench {
    /// Closed loop: each client starts its next login when the last one has ended.
    async fn closed(&self, number: usize, at_a_time: usize) -> Logins {
        let next = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for endpoint in self.endpoints.iter().cycle().take(at_a_time.min(number)) {
            let (next, endpoint, users) = (Arc::clone(&next), endpoint.clone(), self.users.clone());
            clients.spawn(async move {
                let mut logins = Logins::default();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= number || began.elapsed() > LONGEST {
                        return logins;
                    }
                    logins.take(timed_login(&endpoint, &users.login_command(n)).await);
                }
            });
        }
        let mut all = Logins::default();
        while let Some(logins) = clients.join_next().await {
            all.add(logins.unwrap_or_default());
        }
        all.lasted = began.elapsed();
        all
    }

    /// Open loop: each login starts at its scheduled time, independent of earlier ones; timed from the
    /// scheduled time, which is up to a millisecond before the timer fires.
    async fn open(&self, number: usize, rate: f64) -> Logins {
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for n in 0..number {
            let due = began + Duration::from_secs_f64(n as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
            let endpoint = self.endpoints[n % self.endpoints.len()].clone();
            let command = self.users.login_command(n);
            clients.spawn(async move {
                let late = due.elapsed();
                let login = timed_login(&endpoint, &command).await;
                login.map(|(took, resumed)| (late + took, resumed))
            });
        }
        let mut all = Logins::default();
        while let Some(login) = clients.join_next().await {
            all.take(login.unwrap_or_else(|error| Err(io::Error::other(error))));
        }
        all.lasted = began.elapsed();
        all
    }

    async fn measured(&self, number: usize, at_a_time: usize, rate: Option<f64>) -> (Logins, f64) {
        let before = self.tree.cpu();
        let logins = match rate {
            Some(rate) => self.open(number, rate).await,
            None => self.closed(number, at_a_time).await,
        };
        sleep(SETTLE / 4).await;
        let cpu = self.tree.cpu() - before;
        let ms = cpu * 1_000.0 / logins.times.len() as f64;
        (logins, ms)
    }

    /// Numbers of full and of resumed handshakes of connections to the stub that logged in.
    async fn handshakes(&self) -> io::Result<Option<(f64, f64)>> {
        let Some(stub) = &self.stub else { return Ok(None) };
        let mut session = stub.open().await?;
        let line = session.command("XHANDSHAKES").await?;
        session.logout().await?;
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
        Ok(numbers.next().zip(numbers.next()))
    }

    pub(crate) async fn logins(
        &self,
        number: usize,
        at_a_time: usize,
        rate: Option<f64>,
        warm_up: usize,
        figures: &mut Figures,
    ) -> io::Result<()> {
        if warm_up > 0 {
            let logins = self.closed(warm_up, at_a_time.min(OPENING)).await;
            if let Some(error) = logins.first_failure {
                return Err(io::Error::other(format!("warming up: {error}")));
            }
        }
        let before = self.handshakes().await?;
        let (logins, cpu) = self.measured(number, at_a_time, rate).await;
        figures.add("CPU per login", "ms", cpu);
        logins.report(figures, "");
        figures.add("client resumed", "%", 100.0 * logins.resumed as f64 / logins.times.len() as f64);
        if let (Some(before), Some(after)) = (before, self.handshakes().await?) {
            let (full, resumed) = (after.0 - before.0, after.1 - before.1);
            figures.add("backend resumed", "%", 100.0 * resumed / (full + resumed));
        }
        Ok(())
    }

    pub(crate) async fn idle(
        &self,
        number: usize,
        logins: usize,
        afterwards: Duration,
        figures: &mut Figures,
    ) -> io::Result<()> {
        timed_login(&self.endpoints[0], &self.users.login_command(0)).await?;
        sleep(SETTLE).await;
        let start = self.tree.pss_kib();
        figures.add("PSS before", "KiB", start);
        if logins > 0 {
            // A login with a directory lookup cannot be compared with a cached one.
            self.closed(self.users.number.min(logins), OPENING).await;
        }
        let alone = if logins > 0 { Some(self.measured(logins, OPENING, None).await.1) } else { None };
        sleep(SETTLE).await;
        let (buffers, slab) = kernel_kib();
        let (pss, descriptors) = (self.tree.pss_kib(), self.tree.descriptors());
        let mut sessions = Vec::new();
        let began = Instant::now();
        for step in STEPS.into_iter().filter(|step| *step < number).chain([number]) {
            self.open_up_to(step, &mut sessions).await?;
            sleep(SETTLE).await;
            let now = kernel_kib();
            figures.add(&format!("PSS at {step}"), "KiB", self.tree.pss_kib());
            figures.add(&format!("descriptors at {step}"), "", self.tree.descriptors());
            figures.add(&format!("slab of the machine at {step}"), "KiB", now.1 - slab);
            figures.add(&format!("TCP buffers of the machine at {step}"), "KiB", now.0 - buffers);
        }
        figures.add("opened in", "s", began.elapsed().as_secs_f64());
        let per_session = (self.tree.pss_kib() - pss) / number as f64;
        figures.add("PSS per session", "KiB", per_session);
        figures.add("descriptors per session", "", (self.tree.descriptors() - descriptors) / number as f64);
        if let Some(alone) = alone {
            let among = self.measured(logins, OPENING, None).await.1;
            figures.add("CPU per login, none open", "ms", alone);
            figures.add("CPU per login, all open", "ms", among);
            figures.add("CPU per login, all open / none open", "x", among / alone);
        }
        self.afterwards(sessions, start, afterwards, figures).await;
        Ok(())
    }

    async fn open_up_to(&self, number: usize, sessions: &mut Vec<Session>) -> io::Result<()> {
        let next = Arc::new(AtomicUsize::new(sessions.len()));
        let mut clients = JoinSet::new();
        for endpoint in self.endpoints.iter().cycle().take(OPENING) {
            let (next, endpoint, users) = (Arc::clone(&next), endpoint.clone(), self.users.clone());
            clients.spawn(async move {
                let mut opened = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= number {
                        return Ok::<_, io::Error>(opened);
                    }
                    opened.push(endpoint.login(&users.login_command(n)).await?);
                }
            });
        }
        while let Some(opened) = clients.join_next().await {
            sessions.extend(opened.map_err(io::Error::other)??);
        }
        Ok(())
    }

    /// Memory after all sessions have ended.
    async fn afterwards(&self, sessions: Vec<Session>, start: f64, watched: Duration, figures: &mut Figures) {
        let mut leaving = JoinSet::new();
        for session in sessions {
            leaving.spawn(session.logout());
        }
        while leaving.join_next().await.is_some() {}
        let left = Instant::now();
        let (mut least, mut back) = (f64::INFINITY, None);
        while left.elapsed() < watched && (back.is_none() || least > start * 1.2) {
            sleep(SETTLE / 2).await;
            least = least.min(self.tree.pss_kib());
            if least < 1.5 * start {
                back.get_or_insert(left.elapsed());
            }
        }
        figures.add("PSS after all have left", "KiB", least);
        figures.add("PSS after / before", "x", least / start);
        if let Some(back) = back {
            figures.add("under 1.5 x before after", "s", back.as_secs_f64());
        }
    }

    pub(crate) async fn bulk(&self, number: usize, mib: u64, up: bool, figures: &mut Figures) -> io::Result<()> {
        let mut sessions = Vec::new();
        self.open_up_to(number, &mut sessions).await?;
        for session in &mut sessions {
            // A first transfer, so that windows and buffers have grown.
            transfer(session, MIB, up).await?;
        }
        let (cpu, began) = (self.tree.cpu(), Instant::now());
        let mut transfers = JoinSet::new();
        for mut session in sessions {
            transfers.spawn(async move { transfer(&mut session, mib * MIB, up).await.map(|()| session) });
        }
        let mut done = Vec::new();
        while let Some(session) = transfers.join_next().await {
            done.push(session.map_err(io::Error::other)??);
        }
        let (cpu, lasted) = (self.tree.cpu() - cpu, began.elapsed().as_secs_f64());
        let gib = (number as u64 * mib * MIB) as f64 / GIB;
        figures.add("CPU per GiB", "s", cpu / gib);
        figures.add("throughput", "GiB/s", gib / lasted);
        for session in done {
            let _ = session.logout().await;
        }
        Ok(())
    }

    /// Logins one at a time, alone and during continuous transfers.
    pub(crate) async fn mixed(&self, number: usize, logins: usize, figures: &mut Figures) -> io::Result<()> {
        self.closed(self.users.number.min(logins), OPENING).await;
        let alone = self.closed(logins, 1).await;
        let moved = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        // In a separate thread, or the logins would wait for this program's own transfers.
        let transfers = {
            let (moved, stop) = (Arc::clone(&moved), Arc::clone(&stop));
            let (endpoints, users) = (self.endpoints.clone(), self.users.clone());
            std::thread::spawn(move || transfers(&endpoints, &users, number, &moved, &stop))
        };
        let begun = Instant::now();
        while moved.load(Ordering::Relaxed) < number as u64 * MIXED_CHUNK
            && !transfers.is_finished()
            && begun.elapsed() < LONGEST / 2
        {
            sleep(SETTLE / 10).await;
        }
        let (began, before) = (Instant::now(), moved.load(Ordering::Relaxed));
        let beside = self.closed(logins, 1).await;
        let gib = (moved.load(Ordering::Relaxed) - before) as f64 / GIB;
        let rate = gib / began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        transfers.join().map_err(|_| io::Error::other("the transfers panicked"))??;
        alone.report(figures, "alone: ");
        beside.report(figures, "beside bulk: ");
        figures.add("p99 beside bulk / alone", "x", beside.ms(0.99) / alone.ms(0.99));
        figures.add("throughput meanwhile", "GiB/s", rate);
        Ok(())
    }
}

/// Downloads by `number` sessions until `stop` is set.
fn transfers(
    endpoints: &[Endpoint],
    users: &Users,
    number: usize,
    moved: &Arc<AtomicU64>,
    stop: &Arc<AtomicBool>,
) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut transfers = JoinSet::new();
        for (n, endpoint) in endpoints.iter().cycle().take(number).enumerate() {
            let mut session = endpoint.login(&users.login_command(n)).await?;
            let (moved, stop) = (Arc::clone(moved), Arc::clone(stop));
            transfers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    session.download(MIXED_CHUNK).await?;
                    moved.fetch_add(MIXED_CHUNK, Ordering::Relaxed);
                }
                session.logout().await
            });
        }
        while let Some(ended) = transfers.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    })
}

async fn transfer(session: &mut Session, size: u64, up: bool) -> io::Result<()> {
    if up { session.upload(size).await } else { session.download(size).await }
}
