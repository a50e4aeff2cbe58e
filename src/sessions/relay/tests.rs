//! Order, half-close, back-pressure and every way to close.

use std::future::pending;
use std::pin::pin;

use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

use super::*;

mod random;
mod stalled;
mod tls;

impl Transport for DuplexStream {
    fn is_broken(&self) -> bool {
        false
    }
}

const IDLE: Duration = Duration::from_secs(60);

const LINES: ClosingLine = ClosingLine::Line { prefix: "* BYE ", suffix: "\r\n" };

fn counter() -> IntCounter {
    IntCounter::new("test", "test").unwrap()
}

struct Setup {
    client: DuplexStream,
    backend: DuplexStream,
    relay: tokio::task::JoinHandle<RelayOutcome>,
}

async fn run(
    client: RelaySide<DuplexStream>,
    backend: RelaySide<DuplexStream>,
    parting: ClosingLine,
    stop: impl Future<Output = TerminationReason>,
) -> RelayOutcome {
    Relay::new(client, backend, IDLE).run(&parting, &mut pin!(stop)).await
}

fn start(pipe: usize, to_client: &[u8], to_backend: &[u8]) -> Setup {
    let (client, client_side) = duplex(pipe);
    let (backend, backend_side) = duplex(pipe);
    let client_end = RelaySide { stream: client_side.into(), first: to_client.to_vec(), own: 0, sent: counter() };
    let backend_end = RelaySide { stream: backend_side.into(), first: to_backend.to_vec(), own: 0, sent: counter() };
    let relay = tokio::spawn(run(client_end, backend_end, ClosingLine::Close, pending()));
    Setup { client, backend, relay }
}

#[tokio::test(start_paused = true)]
async fn bytes_read_before_are_forwarded_first_on_both_sides() {
    let mut setup = start(16, b"to the client, ", b"to the backend, ");
    setup.client.write_all(b"from the client").await.unwrap();
    setup.backend.write_all(b"from the backend").await.unwrap();
    let mut at_backend = [0; 31];
    setup.backend.read_exact(&mut at_backend).await.unwrap();
    assert_eq!(&at_backend[..], b"to the backend, from the client");
    let mut at_client = [0; 31];
    setup.client.read_exact(&mut at_client).await.unwrap();
    assert_eq!(&at_client[..], b"to the client, from the backend");
}

#[tokio::test(start_paused = true)]
async fn half_close_is_forwarded_and_the_reply_still_arrives() {
    let mut setup = start(64, b"", b"");
    setup.client.write_all(b"last words").await.unwrap();
    setup.client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    setup.backend.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
    tokio::time::sleep(Duration::from_secs(2)).await;
    setup.backend.write_all(b"answer").await.unwrap();
    setup.backend.shutdown().await.unwrap();
    let mut answer = Vec::new();
    setup.client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    let ended = setup.relay.await.unwrap();
    assert_eq!(ended, RelayOutcome { cause: EndReason::Closed, bytes_in: 10, bytes_out: 6 });
}

#[tokio::test(start_paused = true)]
async fn logout_is_one_cause_whichever_side_closes_first() {
    for client_first in [true, false] {
        for (apart, expected) in [(0, true), (2, true), (4, false)] {
            let setup = start(64, b"", b"");
            let (mut first, mut second) = (setup.client, setup.backend);
            if !client_first {
                std::mem::swap(&mut first, &mut second);
            }
            first.shutdown().await.unwrap();
            // What the other side still sends keeps the session, and is no logout any more.
            for _ in 0..apart {
                tokio::time::sleep(Duration::from_secs(1)).await;
                second.write_all(b"x").await.unwrap();
            }
            second.shutdown().await.unwrap();
            let first_alone = if client_first { EndReason::ClientClosed } else { EndReason::BackendClosed };
            let cause = if expected { EndReason::Closed } else { first_alone };
            assert_eq!(setup.relay.await.unwrap().cause, cause, "{client_first} {apart}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn half_closed_session_ends_three_seconds_after_its_last_byte() {
    let mut setup = start(64, b"", b"");
    setup.client.shutdown().await.unwrap();
    let began = Instant::now();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        setup.backend.write_all(b"still here").await.unwrap();
    }
    assert_eq!(setup.relay.await.unwrap().cause, EndReason::ClientClosed);
    let lived = began.elapsed();
    assert!(lived >= Duration::from_secs(12) && lived < Duration::from_secs(14), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn silent_session_ends_and_one_byte_keeps_it() {
    let mut setup = start(64, b"", b"");
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(50)).await;
    setup.backend.write_all(b"* OK still here\r\n").await.unwrap();
    assert_eq!(setup.relay.await.unwrap().cause, EndReason::Idle);
    let lived = began.elapsed();
    assert!(lived >= Duration::from_secs(110) && lived < Duration::from_secs(112), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn idle_session_gets_a_bye_only_behind_a_whole_line() {
    for (said, bye) in [(&b"* 1 EXISTS\r\n"[..], true), (b"* 1 FETCH (BODY[] {100}\r\nhalf", false)] {
        let (mut client, client_side) = duplex(4096);
        let (_backend, backend_side) = duplex(4096);
        let client_end = RelaySide { stream: client_side.into(), first: said.to_vec(), own: 0, sent: counter() };
        let backend_end = RelaySide { stream: backend_side.into(), first: Vec::new(), own: 0, sent: counter() };
        let mut heard = Vec::new();
        let relayed = run(client_end, backend_end, LINES, pending());
        let (ended, _) = tokio::join!(relayed, client.read_to_end(&mut heard));
        assert_eq!(ended.cause, EndReason::Idle);
        let line = if bye { b"* BYE Disconnected for inactivity\r\n".as_slice() } else { b"" };
        assert_eq!(heard, [said, line].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn receiver_that_does_not_read_stops_the_sender() {
    let mut setup = start(1024, b"", b"");
    let sent = timeout(Duration::from_secs(5), setup.client.write_all(&vec![b'x'; 10 * 1024 * 1024])).await;
    assert!(sent.is_err(), "ten MiB were written without a reader");
    drop(setup.client);
    let mut taken = Vec::new();
    setup.backend.read_to_end(&mut taken).await.unwrap();
    assert!(taken.len() <= 128 * 1024, "{} bytes were buffered", taken.len());
}

#[tokio::test(start_paused = true)]
async fn bulk_data_arrives_unchanged_in_both_directions() {
    let setup = start(5000, b"", b"");
    let pattern = |seed: u32| -> Vec<u8> { (0..3_000_000_u32).map(|at| (at.wrapping_mul(seed) >> 13) as u8).collect() };
    let speak = |stream: DuplexStream, words: Vec<u8>| async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut heard = Vec::new();
        let (said, _) = tokio::join!(
            async {
                writer.write_all(&words).await.unwrap();
                writer.shutdown().await
            },
            async { reader.read_to_end(&mut heard).await.unwrap() }
        );
        said.unwrap();
        heard
    };
    let (at_client, at_backend) =
        tokio::join!(speak(setup.client, pattern(77_777)), speak(setup.backend, pattern(99_991)));
    assert!(at_client == pattern(99_991) && at_backend == pattern(77_777));
    let ended = setup.relay.await.unwrap();
    assert_eq!((ended.bytes_in, ended.bytes_out), (3_000_000, 3_000_000));
}

#[tokio::test(start_paused = true)]
async fn broken_side_ends_both() {
    let mut setup = start(64, b"", b"");
    drop(setup.client);
    setup.backend.write_all(b"into the void").await.unwrap();
    let ended = setup.relay.await.unwrap();
    assert!(matches!(ended.cause, EndReason::ClientClosed | EndReason::ClientError), "{ended:?}");
    let mut rest = Vec::new();
    setup.backend.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn stop_closes_both_sides_after_the_closing_line() {
    let (mut client, client_side) = duplex(64);
    let (mut backend, backend_side) = duplex(64);
    let client_end = RelaySide { stream: client_side.into(), first: Vec::new(), own: 0, sent: counter() };
    let backend_end = RelaySide { stream: backend_side.into(), first: Vec::new(), own: 0, sent: counter() };
    let stop = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        TerminationReason::Drain
    };
    let ended = run(client_end, backend_end, LINES, stop).await;
    assert_eq!(ended.cause, EndReason::Terminated(TerminationReason::Drain));
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"* BYE Server shutting down, please reconnect\r\n");
    assert_eq!(backend.read(&mut [0; 8]).await.unwrap(), 0);
}

/// A session stopped after 5 s: the bytes the client receives from then on, and when.
async fn parting(
    first: &[u8],
    parting: ClosingLine,
    backend_says: impl AsyncFn(&mut DuplexStream) + Send + 'static,
) -> (Vec<u8>, Duration) {
    let (mut client, client_side) = duplex(4096);
    let (mut backend, backend_side) = duplex(4096);
    let client_end = RelaySide { stream: client_side.into(), first: first.to_vec(), own: 0, sent: counter() };
    let backend_end = RelaySide { stream: backend_side.into(), first: Vec::new(), own: 0, sent: counter() };
    let asked = Instant::now() + Duration::from_secs(5);
    let stop = async move {
        sleep_until(asked).await;
        TerminationReason::Moved
    };
    let relayed = run(client_end, backend_end, parting, stop);
    let mut heard = Vec::new();
    let (ended, (), _) = tokio::join!(
        relayed,
        async {
            backend_says(&mut backend).await;
            // Until usher has closed, which a backend must see as EOF.
            let _ = backend.read_to_end(&mut Vec::new()).await;
        },
        client.read_to_end(&mut heard)
    );
    assert_eq!(ended.cause, EndReason::Terminated(TerminationReason::Moved));
    (heard, asked.elapsed())
}

#[tokio::test(start_paused = true)]
async fn paused_session_gets_a_bye_and_ends_at_once() {
    let (heard, took) = parting(b"", LINES, async |_| {}).await;
    assert_eq!(
        (heard.as_slice(), took.is_zero()),
        (b"* BYE Your mailbox has moved, please reconnect\r\n".as_slice(), true)
    );
    let whole = parting(b"* 1 EXISTS\r\n", LINES, async |_| {}).await;
    assert_eq!(whole.0, b"* 1 EXISTS\r\n* BYE Your mailbox has moved, please reconnect\r\n");
    let (heard, took) = parting(b"", ClosingLine::Close, async |_| {}).await;
    assert_eq!((heard.len(), took.is_zero()), (0, true));
}

#[tokio::test(start_paused = true)]
async fn line_end_is_detected_in_any_fragmentation() {
    let dripping = async |backend: &mut DuplexStream| {
        for byte in b"* 2 EXISTS\r\n" {
            backend.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(
        parting(b"", LINES, dripping).await.0,
        b"* 2 EXISTS\r\n* BYE Your mailbox has moved, please reconnect\r\n"
    );
}

#[tokio::test(start_paused = true)]
async fn bye_is_never_inserted_into_a_backend_reply() {
    for half in [&b"* 1 FETCH (BODY[] {100}"[..], b"* 1 FETCH (BODY[] {100}\r", b"text\n", b"\n"] {
        let (heard, took) = parting(half, LINES, async |_| {}).await;
        assert_eq!((heard.as_slice(), took.is_zero()), (half, true));
    }
}

#[tokio::test(start_paused = true)]
async fn busy_session_ends_at_its_next_pause_or_after_a_delay() {
    // It replies for 6.5 s, of which 1.5 s are after the stop.
    let answering = async |backend: &mut DuplexStream| {
        for _ in 0..65 {
            backend.write_all(b"* 3 EXISTS\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (heard, took) = parting(b"", LINES, answering).await;
    assert!(heard.ends_with(b"\r\n* BYE Your mailbox has moved, please reconnect\r\n"));
    assert!(took > Duration::from_secs(2) && took < PAUSE_TIMEOUT, "{took:?}");
    let endless = async |backend: &mut DuplexStream| {
        while backend.write_all(b"* 3 EXISTS\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (heard, took) = parting(b"", LINES, endless).await;
    assert!(heard.ends_with(b"* 3 EXISTS\r\n"), "no line without a pause");
    assert!(took >= PAUSE_TIMEOUT && took < PAUSE_TIMEOUT + Duration::from_millis(200), "{took:?}");
}
