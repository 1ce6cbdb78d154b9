//! Frames of AMQP 0-9-1, as bytes.

use amq_protocol::frame::{
    AMQPContentHeader, AMQPFrame, ProtocolVersion, WriteContext, gen_frame, parse_frame,
};
use amq_protocol::protocol::{AMQPClass, basic};
use amq_protocol::types::ChannelId;
use bytes::{Buf as _, BytesMut};

/// The largest frame that we accept and send: RabbitMQ's own default.
pub(super) const FRAME_BYTES_MAX: usize = 128 * 1024;
/// What is around the payload of a frame: type, channel and length before it, one byte after.
const AROUND_BYTES: usize = 8;
const BEFORE_BYTES: usize = 7;
const END: u8 = 0xce;
const BODY: u8 = 3;
const CLASS_BASIC: u16 = 60;

/// Bytes that are no frame.
#[derive(Debug)]
pub(super) struct Garbled;

/// Adds a method.
pub(super) fn add_method(out: &mut Vec<u8>, channel: ChannelId, method: AMQPClass) {
    add(out, &AMQPFrame::Method(channel, method));
}

/// Adds what a client says first.
pub(super) fn add_protocol_header(out: &mut Vec<u8>) {
    add(
        out,
        &AMQPFrame::ProtocolHeader(ProtocolVersion::amqp_0_9_1()),
    );
}

/// Adds the sign that we are still there.
pub(super) fn add_heartbeat(out: &mut Vec<u8>) {
    add(out, &AMQPFrame::Heartbeat);
}

/// Adds a message: a method, a header and as many bodies as it takes.
///
/// # Errors
/// The size of the header, when that does not fit into one frame; `out` is unchanged.
pub(super) fn add_message(
    out: &mut Vec<u8>,
    channel: ChannelId,
    publish: basic::Publish,
    properties: basic::AMQPProperties,
    body: &[u8],
    frame_bytes_max: usize,
) -> Result<(), usize> {
    let begin = out.len();
    add_method(
        out,
        channel,
        AMQPClass::Basic(basic::AMQPMethod::Publish(publish)),
    );
    let header = out.len();
    let content = AMQPContentHeader {
        class_id: CLASS_BASIC,
        body_size: body.len() as u64,
        properties,
    };
    add(out, &AMQPFrame::Header(channel, content));
    let header_bytes = out.len() - header;
    if header_bytes > frame_bytes_max {
        out.truncate(begin);
        return Err(header_bytes);
    }
    // Written here: the codec wants each body in a vector of its own.
    for part in body.chunks(frame_bytes_max - AROUND_BYTES) {
        out.push(BODY);
        out.extend(channel.to_be_bytes());
        out.extend((part.len() as u32).to_be_bytes());
        out.extend(part);
        out.push(END);
    }
    Ok(())
}

fn add(out: &mut Vec<u8>, frame: &AMQPFrame) {
    let context = WriteContext::from(std::mem::take(out));
    // A vector takes every byte, and names are checked for their length before they get here.
    *out = gen_frame(frame)(context)
        .expect("writing to memory does not fail")
        .into_inner()
        .0;
}

/// Takes the first frame out of `input`; none while it has not come to its end.
pub(super) fn take(input: &mut BytesMut) -> Result<Option<AMQPFrame>, Garbled> {
    // A server of another version answers with the header of its own.
    let bytes = match input.first() {
        Some(b'A') => BEFORE_BYTES + 1,
        _ => {
            let Some(length) = input.get(3..BEFORE_BYTES) else {
                return Ok(None);
            };
            let payload = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
            payload + AROUND_BYTES
        }
    };
    if bytes > FRAME_BYTES_MAX {
        return Err(Garbled);
    }
    if input.len() < bytes {
        return Ok(None);
    }
    let frame = match parse_frame(&input[..bytes]) {
        Ok(([], frame)) => frame,
        _ => return Err(Garbled),
    };
    input.advance(bytes);
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Vec<AMQPFrame> {
        let mut out = Vec::new();
        let publish = basic::Publish {
            exchange: "x".into(),
            routing_key: "a.b".into(),
            mandatory: true,
            ..basic::Publish::default()
        };
        let properties = basic::AMQPProperties::default().with_message_id("7".into());
        add_message(&mut out, 1, publish, properties, body, 4_096).unwrap();
        let mut input = BytesMut::from(&out[..]);
        let mut frames = Vec::new();
        while let Some(frame) = take(&mut input).unwrap() {
            frames.push(frame);
        }
        assert!(input.is_empty());
        frames
    }

    #[test]
    fn a_body_is_split_into_frames_and_an_empty_one_has_none() {
        assert_eq!(message(b"").len(), 2);
        let body: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let frames = message(&body);
        let parts = frames[2..].iter().map(|frame| match frame {
            AMQPFrame::Body(1, part) => part.clone(),
            other => panic!("{other}"),
        });
        assert_eq!(frames.len(), 5);
        assert_eq!(parts.flatten().collect::<Vec<_>>(), body);
    }

    #[test]
    fn a_header_that_fits_into_no_frame_is_refused_and_leaves_nothing() {
        let properties = basic::AMQPProperties::default().with_content_type("x".repeat(255).into());
        let mut out = b"before".to_vec();
        let added = add_message(&mut out, 1, basic::Publish::default(), properties, b"", 200);
        assert!(added.is_err_and(|bytes| bytes > 255));
        assert_eq!(out, b"before");
    }

    #[test]
    fn a_frame_is_taken_when_it_is_whole_and_garbage_is_noticed() {
        let mut out = Vec::new();
        add_heartbeat(&mut out);
        for most in 0..out.len() {
            assert!(take(&mut BytesMut::from(&out[..most])).unwrap().is_none());
        }
        let mut input = BytesMut::from(&out[..]);
        assert_eq!(take(&mut input).unwrap(), Some(AMQPFrame::Heartbeat));
        assert_eq!(take(&mut input).unwrap(), None);

        let header = take(&mut BytesMut::from(&b"AMQP\0\0\x09\x01"[..])).unwrap();
        assert!(matches!(header, Some(AMQPFrame::ProtocolHeader(_))));
        for garbage in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"-ERR unknown command 'AMQP'\r\n",
            b"\x08\0\0\0\0\0\0\0",
            b"\x01\0\0\xff\xff\xff\xff",
            b"\x01\0\0\0\0\0\x04\0\x0a\0\x63\xce",
        ] {
            assert!(take(&mut BytesMut::from(garbage)).is_err(), "{garbage:?}");
        }
    }
}
