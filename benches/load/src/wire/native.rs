//! Kiln's own protocol, by the codec that nodes and clients use.
//!
//! Requests carry a number and answers may come in any order. Values are sent and taken plain:
//! compression is not agreed to, so that a run measures the same bytes on every protocol.

use std::borrow::Cow;

use kiln_protocol::Parsed as Frame;
use kiln_protocol::command::{Command, Get, Store, Ttl};
use kiln_protocol::native::{
    self as codec, CacheRef, Data, FRAME_HEAD_LEN, FRAME_OVERHEAD_MAX, Frames, HELLO_FRAME_MAX,
    Response, Value, Want, encode,
};

use super::{Answer, Asked, Item, Parsed, Reply, WireError};
use crate::target::Credentials;

/// Appends request `id`. `scratch` holds key and value while they are put into the frame.
pub(super) fn request(
    asked: Asked,
    cache: u32,
    id: u32,
    item: &Item<'_>,
    scratch: &mut Vec<u8>,
    output: &mut Vec<u8>,
) {
    scratch.clear();
    item.key(scratch);
    let command = match asked {
        Asked::Get => Command::Get(Get::plain(scratch)),
        Asked::Set => {
            item.value(scratch);
            let (key, value) = scratch.split_at(item.key_len());
            Command::Store(Store { ttl: Ttl::Default, ..Store::set(key, value) })
        }
    };
    let item = codec::Item { command, want: Want::default() };
    encode::data(output, id, &Data { cache: CacheRef::Handle(cache), item });
}

pub(super) fn answer(input: &[u8], reply_len_max: usize) -> Result<Parsed<Answer<'_>>, WireError> {
    let (body, consumed) = match frame(input, reply_len_max)? {
        Parsed::Complete { message, consumed } => (message, consumed),
        Parsed::NeedMore { at_least } => return Ok(Parsed::NeedMore { at_least }),
    };
    let (id, response) = Response::decode(body).map_err(|bad| wrong(bad.what))?;
    let reply = match response {
        Response::Value { value: Some(Value::Plain(value)), .. } => Reply::Value(value),
        Response::NotFound => Reply::Miss,
        Response::Stored { .. } => Reply::Stored,
        Response::Error(failure) => {
            let words = format!("{}: {}", failure.code.name(), failure.text);
            // An error for nobody in particular is about the connection: it closes next.
            return if id == 0 {
                Err(wrong(words))
            } else {
                let reply = Reply::Refused(Cow::Owned(words.into_bytes()));
                Ok(Parsed::Complete { message: Answer { reply, id: Some(id) }, consumed })
            };
        }
        Response::Push(_) => Reply::Notice,
        other => return Err(wrong(format!("{other:?} answers neither a get nor a set"))),
    };
    Ok(Parsed::Complete { message: Answer { reply, id: Some(id) }, consumed })
}

fn frame(input: &[u8], body_len_max: usize) -> Result<Parsed<&[u8]>, WireError> {
    match (Frames { body_len_max }).next(input) {
        Ok(Frame::Complete { message, consumed }) => Ok(Parsed::Complete { message, consumed }),
        Ok(Frame::NeedMore { at_least, .. }) => {
            Ok(Parsed::NeedMore { at_least: at_least.max(input.len() + 1) })
        }
        // Frames are cut without scratch memory.
        Ok(Frame::ScratchFull) => Err(wrong("the frame cannot be cut")),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn wrong(reason: impl Into<String>) -> WireError {
    WireError::Frame { reason: reason.into() }
}

/// What a frame may hold beside its value.
pub(super) const OVERHEAD_MAX: usize = FRAME_HEAD_LEN + FRAME_OVERHEAD_MAX;

/// The first frames of a connection, before anything is measured.
pub(crate) mod handshake {
    use kiln_protocol::native::{MAGIC, Op, VERSION, admin};

    use super::*;

    /// What matters of a welcome.
    #[derive(Debug)]
    pub(crate) struct Welcome {
        pub(crate) server: String,
        /// Longest value; `None` when the node does not say.
        pub(crate) value_len_max: Option<u64>,
    }

    pub(crate) fn hello(credentials: Option<&Credentials>, output: &mut Vec<u8>) {
        let auth = credentials.map(|credentials| admin::Credentials {
            user: credentials.user.clone(),
            password: credentials.password.clone(),
        });
        let hello = admin::Hello {
            magic: MAGIC.to_owned(),
            version_min: VERSION,
            version_max: VERSION,
            client: concat!("kiln-load/", env!("CARGO_PKG_VERSION")).to_owned(),
            auth,
            ..admin::Hello::default()
        };
        encode::hello(output, GREETING_ID, &hello);
    }

    pub(crate) fn open_cache(name: &str, output: &mut Vec<u8>) {
        encode::named(output, GREETING_ID, Op::OpenCache, name);
    }

    /// The body of the first frame; `at_least` counts from the start of `input`.
    pub(crate) fn frame(input: &[u8]) -> Result<Parsed<&[u8]>, WireError> {
        super::frame(input, HELLO_FRAME_MAX)
    }

    pub(crate) fn welcome(body: &[u8]) -> Result<Welcome, String> {
        let welcome: admin::Welcome = structure(body)?;
        let value_len_max = (welcome.limits.value_max > 0).then_some(welcome.limits.value_max);
        Ok(Welcome { server: welcome.server, value_len_max })
    }

    /// The handle of a cache that was opened.
    pub(crate) fn opened(body: &[u8]) -> Result<u32, String> {
        structure::<admin::Opened>(body).map(|opened| opened.handle)
    }

    fn structure<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
        match Response::decode(body) {
            Ok((_, Response::Ok(bytes))) => admin::get(bytes).map_err(|error| error.to_string()),
            Ok((_, Response::Error(failure))) => Err(failure.text.to_owned()),
            Ok((_, other)) => Err(format!("{other:?} answers no greeting")),
            Err(bad) => Err(bad.what.to_owned()),
        }
    }

    const GREETING_ID: u32 = 1;
}

#[cfg(test)]
mod tests {
    use kiln_protocol::command::ItemMeta;
    use kiln_protocol::native::{Body, ErrorCode, Failure, Request, respond};

    use super::*;
    use crate::keys::KeyShape;
    use crate::values::{SizeDist, Values};

    const LIMIT: usize = 10_000;

    fn value_answer(id: u32, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let item = ItemMeta { value_len: value.len(), version: 7, ..ItemMeta::default() };
        respond::hit_head(&mut out, id, codec::HitHead { item: &item, with_value: true });
        out.extend_from_slice(value);
        out
    }

    #[test]
    fn a_request_is_one_that_a_node_reads() {
        let shape = KeyShape::new("key:", 8, 1000).unwrap();
        let values = Values::new(SizeDist::fixed(40).unwrap());
        let item = Item { number: 12, shape: &shape, values: &values };
        let (mut scratch, mut output) = (Vec::new(), Vec::new());
        request(Asked::Set, 3, 9, &item, &mut scratch, &mut output);

        let request = Request::decode(&output[FRAME_HEAD_LEN..]).unwrap();
        let Body::Data(data) = request.body else { panic!("not an operation on an item") };
        let Command::Store(store) = data.item.command else { panic!("not a write") };
        assert_eq!((request.id, data.cache, store.key), (9, CacheRef::Handle(3), &b"key:0012"[..]));
        assert!(values.matches(12, store.value));
    }

    #[test]
    fn an_answer_is_whole_only_with_its_last_byte_and_names_its_request() {
        let bytes = value_answer(77, b"hello");
        for cut in 0..bytes.len() {
            let parsed = answer(&bytes[..cut], LIMIT).unwrap();
            let Parsed::NeedMore { at_least } = parsed else { panic!("{cut} bytes are no answer") };
            assert!(at_least > cut && at_least <= bytes.len());
        }
        let message = Answer { reply: Reply::Value(b"hello"), id: Some(77) };
        let consumed = bytes.len();
        assert_eq!(answer(&bytes, LIMIT), Ok(Parsed::Complete { message, consumed }));
    }

    #[test]
    fn a_refusal_keeps_the_words_of_the_node() {
        let mut bytes = Vec::new();
        respond::failure(&mut bytes, 5, &Failure::refused(ErrorCode::Busy, "later"));
        let Ok(Parsed::Complete { message, .. }) = answer(&bytes, LIMIT) else { panic!("whole") };
        assert_eq!(message.reply, Reply::Refused(Cow::Borrowed(b"busy: later")));
    }

    #[test]
    fn a_frame_longer_than_any_answer_ends_the_connection() {
        let error = answer(&[0xff, 0, 0, 0], LIMIT).unwrap_err();
        assert!(matches!(error, WireError::Frame { .. }), "{error}");
        assert!(answer(b"ERROR\r\n", LIMIT).is_err());
    }
}
