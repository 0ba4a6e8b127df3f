//! What a message costs. Run by hand:
//! `cargo test --release -p kiln peer::tests::speed -- --ignored --nocapture --test-threads 1`

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kiln_protocol::peer::read_record;

use super::*;

/// How long each measurement takes.
const SPAN: Duration = Duration::from_secs(2);

/// Counts, and tells the sender how far it got.
#[derive(Default)]
struct Counting {
    bodies: AtomicU64,
}

impl Inbound for Counting {
    fn message(&self, message: Message, _more: bool) {
        self.bodies.fetch_add(message.bodies.len() as u64, Relaxed);
    }

    fn call(
        &self,
        _from: Caller,
        _kind: u8,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, Refused>> + Send>> {
        Box::pin(async move { Ok(body) })
    }
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[test]
#[ignore = "a measurement"]
fn messages_of_about_150_bytes() {
    for (messages, bodies) in [(1, 1), (1, 64), (64, 1)] {
        measure(messages, bodies);
    }
}

/// Two nodes on threads of their own; the sender keeps at most `window` flushes under way.
fn measure(messages: usize, bodies: usize) {
    let counting = Arc::new(Counting::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let inbound = Arc::clone(&counting);
    let receiver = std::thread::spawn(move || {
        runtime().block_on(async {
            let me = Identity { member: member(2, 22), name: "b".to_owned() };
            let settings = LinkSettings::default();
            let links = Links::start(settings, listener, me, CLUSTER, inbound).unwrap();
            let begin = cpu();
            let _ = stopped.await;
            links.close();
            cpu() - begin
        })
    });
    runtime().block_on(async {
        let a = TestNode::start(1, 11, CLUSTER);
        a.links.set_peers(vec![(member(2, 22), address.to_string())]);
        a.linked(NodeId(2)).await;
        let bodies: Vec<_> = (0..bodies).map(|n| append(n as u64, noise(32))).collect();
        let message = a.message(member(2, 22), bodies.clone());
        let per_flush = (messages * bodies.len()) as u64;
        let before = a.stats(NodeId(2)).bytes_out;
        let (begin, mut sending) = (Instant::now(), Duration::ZERO);
        let mut sent = 0;
        while begin.elapsed() < SPAN {
            let begin_cpu = cpu();
            for _ in 0..messages {
                a.links.send(NodeId(2), &message);
            }
            a.links.flush();
            sending += cpu() - begin_cpu;
            sent += per_flush;
            while sent - counting.bodies.load(Relaxed) > 16 * per_flush {
                tokio::task::yield_now().await;
            }
        }
        let took = begin.elapsed();
        until("all has come", || counting.bodies.load(Relaxed) == sent).await;
        let bytes = a.stats(NodeId(2)).bytes_out - before;
        assert_eq!(a.stats(NodeId(2)).dropped, 0);
        stop.send(()).unwrap();
        let receiving = receiver.join().unwrap();
        let each = |cpu: Duration| cpu.as_nanos() as u64 / sent;
        println!(
            "{messages:>3} messages x {:>2} writes per flush: {:>9.0} writes/s, {} bytes each, \
             CPU per write: {} ns sending, {} ns receiving",
            message.bodies.len(),
            sent as f64 / took.as_secs_f64(),
            bytes / sent,
            each(sending),
            each(receiving),
        );
    });
}

#[test]
#[ignore = "a measurement"]
fn encoding_and_decoding_alone() {
    use super::super::wire;
    let body = append(1, noise(32));
    let large = append(1, noise(1_024));
    let rounds = 1_000_000_u32;
    for (what, body) in [("32 bytes", body), ("1 KiB", large)] {
        let mut out = Vec::new();
        let begin = cpu();
        for _ in 0..rounds {
            out.clear();
            wire::put_body(&mut out, std::hint::black_box(&body)).unwrap();
        }
        let encode = (cpu() - begin) / rounds;
        let begin = cpu();
        for _ in 0..rounds {
            let body: Body = read_record(std::hint::black_box(&out[4..])).unwrap();
            std::hint::black_box(body);
        }
        let decode = (cpu() - begin) / rounds;
        println!("a write of {what}: {} bytes, encode {encode:?}, decode {decode:?}", out.len());
    }
}
