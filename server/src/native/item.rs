//! One operation on one item, alone or as an element of a batch.

use kiln_engine::{Appended, Store, Value};
use kiln_protocol::{
    command::{Command, Get, ItemMeta, Outcome},
    native::{
        ErrorCode, Failure, HitHead, Item, ItemHead, Value as WireValue, Want, compress, inflate,
        respond::{self, element},
    },
};

use crate::{
    caches::Cache,
    connection::{Context, Output, budget::Share},
    execute::{PlainRead, Sink, execute},
    native::{
        COMPRESS_MAX, COMPRESS_MIN,
        batch::{NO_SUCH_CACHE, Scratch},
        busy, replace,
        session::{Found, Native},
    },
};

/// The longest answer that carries no value, in bytes: an error with its text.
pub(super) const SHORT_ANSWER_MAX: usize = 160;

/// How an operation is answered.
#[derive(Clone, Copy)]
pub(super) enum Answer {
    /// With a frame of its own; not at all when the id is 0.
    Frame {
        /// The request's.
        id: u32,
    },
    /// As an element of a batch.
    Element {
        /// Bytes that a value may have, for the frame to stay within the limit.
        room: usize,
    },
    /// Not at all.
    None,
}

impl Answer {
    pub(super) fn outcome(self, outcome: &Outcome, replies: &mut Vec<u8>) {
        match self {
            Self::Frame { id } => respond::outcome(replies, id, outcome, None),
            Self::Element { .. } => element::outcome(replies, outcome, None),
            Self::None => {}
        }
    }

    pub(super) fn failure(self, failure: &Failure<'_>, replies: &mut Vec<u8>) {
        match self {
            Self::Frame { id } => respond::failure(replies, id, failure),
            Self::Element { .. } => element::failure(replies, failure),
            Self::None => {}
        }
    }

    fn hit_head(self, head: HitHead<'_>, replies: &mut Vec<u8>) {
        match self {
            Self::Frame { id } => respond::hit_head(replies, id, head),
            Self::Element { .. } => element::hit_head(replies, head),
            Self::None => {}
        }
    }
}

/// Runs an operation that came alone, and answers it.
#[inline]
pub(super) fn run_frame(
    session: &mut Native,
    context: &mut Context<'_>,
    found: Option<Found<'_>>,
    head: &ItemHead<'_>,
    hash: u64,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
) {
    let answer = Answer::Frame { id: head.id };
    let Some(found) = found else {
        let failure = Failure::refused(ErrorCode::NoSuchCache, NO_SUCH_CACHE);
        return answer.failure(&failure, replies);
    };
    if head.is_plain_get() {
        let get = Command::Get(Get { may_refill: true, ..Get::plain(head.key) });
        return run_plain(session, context, found, &get, hash, answer, replies, scratch);
    }
    match head.item() {
        Ok(item) => run(session, context, found, &item, hash, answer, replies, scratch),
        Err(refused) => {
            context.worker.counters.protocol_errors.add(1);
            answer.failure(&Failure::refused(refused.code, refused.what), replies);
        }
    }
}

/// Runs an operation and appends its answer.
#[allow(clippy::too_many_arguments)] // what is at hand anyway: a struct would be built each time
#[inline]
pub(super) fn run(
    session: &mut Native,
    context: &mut Context<'_>,
    found: Found<'_>,
    item: &Item<'_>,
    hash: u64,
    answer: Answer,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
) {
    let Item { command, want } = item;
    if *want != Want::default() || !is_plain(command, &found.cache.store) {
        return run_special(session, context, found, item, hash, answer, replies, scratch);
    }
    run_plain(session, context, found, command, hash, answer, replies, scratch);
}

/// Runs a command of which nothing special is wanted.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn run_plain(
    session: &mut Native,
    context: &mut Context<'_>,
    found: Found<'_>,
    command: &Command<'_>,
    hash: u64,
    answer: Answer,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
) {
    let sink = ToClient {
        answer,
        no_value: false,
        replies,
        output: context.output,
        pinned: context.pinned,
        compressed: session.lz4.then_some(&mut *scratch),
    };
    if let Some(item) = execute_with(found.cache, command, hash, context.now_ms, sink) {
        send_compressed(&item, answer, replies, scratch);
    }
}

/// Whether a command needs no look beforehand.
#[inline]
fn is_plain(command: &Command<'_>, store: &Store) -> bool {
    match command {
        Command::Store(write) => write.value.len() <= store.value_len_max(),
        _ => true,
    }
}

/// The same for operations that want something beside their command.
#[allow(clippy::too_many_arguments)]
#[cold]
fn run_special(
    session: &mut Native,
    context: &mut Context<'_>,
    found: Found<'_>,
    item: &Item<'_>,
    hash: u64,
    answer: Answer,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
) {
    let Item { command, want } = *item;
    let now_ms = context.now_ms;
    let cache = found.cache;
    let refuse = |code, text: &str, replies: &mut Vec<u8>| {
        answer.failure(&Failure::refused(code, text), replies);
    };
    if want.deadline_ms == Some(0) {
        let text = "the deadline was over when the request came";
        return refuse(ErrorCode::DeadlineExceeded, text, replies);
    }
    // The value may have to be inflated into a buffer, which then is borrowed.
    let mut inflated = Vec::new();
    let mut command = command;
    if let Command::Store(write) = &mut command {
        let len = want.inflated_len.map_or(write.value.len(), |len| len as usize);
        if len > cache.store.value_len_max() {
            cache.store.count_too_large(hash);
            let text = "the value is over the cache's item limit; an older value stays";
            return refuse(ErrorCode::ValueTooLarge, text, replies);
        }
        if want.inflated_len.is_some() {
            if !session.lz4 {
                let text = "compressed values were not agreed in hello";
                return refuse(ErrorCode::BadArgument, text, replies);
            }
            inflated = std::mem::take(&mut scratch.packed);
            inflated.clear();
            if inflate(write.value, len, len, &mut inflated).is_err() {
                return refuse(ErrorCode::BadArgument, "the compressed value is damaged", replies);
            }
            write.value = &inflated;
        }
    }
    if want.track
        && matches!(command, Command::Get(_))
        && let Err(failure) = session.track(context.node, found, hash)
    {
        return refuse(failure.code(), &failure.to_string(), replies);
    }
    if want.return_old && !matches!(command, Command::Get(_)) {
        return replace::run(context, cache, &command, hash, answer, replies);
    }
    let sink = ToClient {
        answer,
        no_value: want.no_value,
        replies,
        output: context.output,
        pinned: context.pinned,
        compressed: session.lz4.then_some(&mut *scratch),
    };
    if let Some(item) = execute_with(cache, &command, hash, now_ms, sink) {
        send_compressed(&item, answer, replies, scratch);
    }
    if inflated.capacity() > 0 {
        scratch.packed = inflated;
    }
}

/// Has `run` answer an operation through a sink, which knows what is wanted of the answer. Returns
/// what `run` returns.
pub(super) fn answer_with(
    session: &Native,
    context: &mut Context<'_>,
    want: Want,
    answer: Answer,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
    run: impl FnOnce(Aside<'_, '_>) -> bool,
) -> bool {
    let sink = ToClient {
        answer,
        no_value: want.no_value,
        replies,
        output: context.output,
        pinned: context.pinned,
        compressed: session.lz4.then_some(&mut *scratch),
    };
    let mut aside = None;
    let done = run(Aside { sink, item: &mut aside });
    if let Some(item) = aside {
        send_compressed(&item, answer, replies, scratch);
    }
    done
}

/// Executes a command. Returns the item of a hit whose value was put aside, to be compressed.
#[inline]
fn execute_with(
    cache: &Cache,
    command: &Command<'_>,
    hash: u64,
    now_ms: u64,
    sink: ToClient<'_>,
) -> Option<ItemMeta> {
    let mut aside = None;
    execute(cache, command, hash, now_ms, Aside { sink, item: &mut aside });
    aside
}

/// A sink that puts values aside which are to be compressed.
pub(super) struct Aside<'a, 'i> {
    sink: ToClient<'a>,
    item: &'i mut Option<ItemMeta>,
}

impl Sink for Aside<'_, '_> {
    #[inline]
    fn append(&mut self, read: &PlainRead<'_>) -> Appended<()> {
        let ToClient { answer, no_value, ref compressed, ref mut replies, .. } = self.sink;
        // Most answers are of this kind; the others are not worth a second way of writing them.
        if no_value || compressed.is_some() || !matches!(answer, Answer::Frame { id: 1.. }) {
            return Appended::Undone;
        }
        read.append(&mut read.store.reads(), replies, |item, replies| {
            answer.hit_head(HitHead { item, with_value: true }, replies);
            Some(())
        })
    }

    #[inline]
    fn hit(self, item: &ItemMeta, value: Value<'_>) {
        let Self { sink, item: aside } = self;
        if sink.hit(item, value) {
            *aside = Some(*item);
        }
    }

    #[inline]
    fn outcome(self, outcome: &Outcome) {
        self.sink.answer.outcome(outcome, self.sink.replies);
    }
}

struct ToClient<'a> {
    answer: Answer,
    no_value: bool,
    replies: &'a mut Vec<u8>,
    output: &'a mut Output,
    pinned: &'a mut Share,
    /// Where values are put that are to be compressed, when that was agreed.
    compressed: Option<&'a mut Scratch>,
}

impl ToClient<'_> {
    /// Answers a hit. True when the value was only put aside. Runs under the shard's lock when the
    /// value is inline.
    #[inline]
    fn hit(self, item: &ItemMeta, value: Value<'_>) -> bool {
        let head = HitHead { item, with_value: true };
        match self.answer {
            Answer::None | Answer::Frame { id: 0 } => return false,
            _ if self.no_value => {
                self.answer.outcome(&Outcome::Hit(*item), self.replies);
                return false;
            }
            Answer::Element { room } if item.value_len > room => {
                let failure = busy("the answer to the batch is full; ask for this item alone");
                self.answer.failure(&failure, self.replies);
                return false;
            }
            _ => {}
        }
        if let Some(scratch) = self.compressed
            && (COMPRESS_MIN..=COMPRESS_MAX).contains(&item.value_len)
        {
            put_aside(&value, &mut scratch.plain);
            return true;
        }
        match value {
            Value::Inline(bytes) => {
                self.answer.hit_head(head, self.replies);
                self.replies.extend_from_slice(bytes);
            }
            Value::Large(pinned) => match self.answer {
                Answer::Element { .. } | Answer::None => {
                    self.answer.hit_head(head, self.replies);
                    pinned.slices().into_iter().for_each(|piece| {
                        self.replies.extend_from_slice(piece);
                    });
                }
                // Pinned, the value keeps its memory from other items until the client took it.
                Answer::Frame { .. }
                    if self.pinned.resize(self.output.large_len() + item.value_len) =>
                {
                    self.answer.hit_head(head, self.replies);
                    self.output.push_bytes(self.replies);
                    self.output.push_large(pinned, item.value_len);
                }
                Answer::Frame { .. } => {
                    let failure = busy("too many large values are on their way to slow clients");
                    self.answer.failure(&failure, self.replies);
                }
            },
        }
        false
    }
}

fn put_aside(value: &Value<'_>, to: &mut Vec<u8>) {
    to.clear();
    match value {
        Value::Inline(bytes) => to.extend_from_slice(bytes),
        Value::Large(pinned) => {
            pinned.slices().into_iter().for_each(|piece| to.extend_from_slice(piece));
        }
    }
}

/// Answers a hit whose value lies in `scratch.plain`: compressed, or as it is where that saves
/// little.
fn send_compressed(item: &ItemMeta, answer: Answer, replies: &mut Vec<u8>, scratch: &mut Scratch) {
    let Scratch { plain, packed, .. } = scratch;
    packed.clear();
    let value = compress(plain, packed).unwrap_or(WireValue::Plain(plain));
    match answer {
        Answer::Frame { id } => respond::compressed_hit(replies, id, item, value),
        Answer::Element { .. } => element::compressed_hit(replies, item, value),
        Answer::None => {}
    }
}
