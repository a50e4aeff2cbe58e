//! Property: whatever both sides send, in any pieces and with any pauses, the other receives
//! it completely and in order, whichever closes first, and the relay ends.

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{ReadHalf, WriteHalf};

use super::*;

/// One side: the bytes read from it before the relay began, the pieces it sends and receives,
/// and whether it closes its direction.
#[derive(Debug, Clone)]
struct Part {
    early: usize,
    said: Vec<(usize, Duration)>,
    heard: Vec<(usize, Duration)>,
    closes: bool,
}

impl Part {
    fn length(&self) -> usize {
        self.early + self.said.iter().map(|(n, _)| n).sum::<usize>()
    }

    /// Bytes that encode their position and side.
    fn words(&self, seed: usize) -> Vec<u8> {
        (0..self.length()).map(|at| (at.wrapping_mul(seed) >> 5) as u8).collect()
    }
}

/// A piece and a pause after it, well below the limit of a half-closed session.
fn steps(largest: usize) -> impl Strategy<Value = Vec<(usize, Duration)>> {
    let pause = prop_oneof![3 => Just(0), 1 => 0..900_u64].prop_map(Duration::from_millis);
    vec((1..largest, pause), 1..12)
}

fn part() -> impl Strategy<Value = Part> {
    let said = prop_oneof![1 => Just(Vec::new()), 6 => steps(90_000)];
    (0..200_usize, said, steps(30_000), prop::bool::weighted(0.8)).prop_map(|(early, said, heard, closes)| Part {
        early,
        said,
        heard,
        closes,
    })
}

/// Sends everything; returns the half, because dropping it would close the stream.
async fn say(mut writer: WriteHalf<DuplexStream>, part: &Part, words: &[u8]) -> WriteHalf<DuplexStream> {
    let mut rest = &words[part.early..];
    for (n, pause) in &part.said {
        writer.write_all(&rest[..*n]).await.expect("the other direction does not end this one");
        rest = &rest[*n..];
        tokio::time::sleep(*pause).await;
    }
    if part.closes {
        writer.shutdown().await.expect("an end can be sent");
    }
    writer
}

async fn hear(mut reader: ReadHalf<DuplexStream>, part: &Part) -> Vec<u8> {
    let mut heard = Vec::new();
    for (n, pause) in part.heard.iter().cycle() {
        let mut piece = vec![0; *n];
        let n = reader.read(&mut piece).await.expect("an end, not a fault");
        if n == 0 {
            break;
        }
        heard.extend_from_slice(&piece[..n]);
        tokio::time::sleep(*pause / 8).await;
    }
    heard
}

async fn play(client: &Part, backend: &Part, pipe: usize) -> Result<(), TestCaseError> {
    let (from_client, from_backend) = (client.words(77_777), backend.words(99_991));
    let setup = start(pipe, &from_backend[..backend.early], &from_client[..client.early]);
    let (client_reads, client_writes) = tokio::io::split(setup.client);
    let (backend_reads, backend_writes) = tokio::io::split(setup.backend);
    let (_client, _backend, at_client, at_backend) = tokio::join!(
        say(client_writes, client, &from_client),
        say(backend_writes, backend, &from_backend),
        hear(client_reads, client),
        hear(backend_reads, backend),
    );
    prop_assert!(at_backend == from_client, "the backend heard {} of {} bytes", at_backend.len(), from_client.len());
    prop_assert!(at_client == from_backend, "the client heard {} of {} bytes", at_client.len(), from_backend.len());
    let ended = setup.relay.await.expect("no panic");
    prop_assert_eq!((ended.bytes_in, ended.bytes_out), (from_client.len() as u64, from_backend.len() as u64));
    let possible: &[EndReason] = match (client.closes, backend.closes) {
        (true, true) => &[EndReason::Closed, EndReason::ClientClosed, EndReason::BackendClosed],
        (true, false) => &[EndReason::ClientClosed],
        (false, true) => &[EndReason::BackendClosed],
        (false, false) => &[EndReason::Idle],
    };
    prop_assert!(possible.contains(&ended.cause), "{:?}", ended.cause);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn relayed_bytes_arrive_unchanged(client in part(), backend in part(), pipe in 512..20_000_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(play(&client, &backend, pipe))?;
    }
}
