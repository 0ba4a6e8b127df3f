//! Where a stream fetches readings by itself: an MQTT broker, a Kafka cluster.
//!
//! Only what is written in a definition, checked; connecting is the node's.

use serde::{Deserialize, Serialize};

use crate::parse::Format;

/// The most sources of a stream.
pub const SOURCES_MAX: usize = 16;
/// The longest name of a source: with what the node adds, a producer's id.
pub const SOURCE_NAME_LEN_MAX: usize = 100;
/// The longest topic.
pub const TOPIC_LEN_MAX: usize = 249;

/// One source; exactly one of `mqtt` and `kafka` is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceDefinition {
    /// An MQTT broker: `mqtt://host:1883`, or `mqtt://user:password@host:1883`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<String>,
    /// Kafka brokers to begin with: `host:9092,other:9092`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<String>,
    /// What to subscribe to; for MQTT with `+` and `#`.
    pub topic: String,
    /// Its name in figures, and its id as a producer; by default kind and topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// MQTT: 0 or 1; by default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// MQTT: the level of a message's topic, from 1, that is the sensor; a line of the message is then
    /// `value` or `value, time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensor_level: Option<u8>,
    /// Kafka: where to begin when nothing was read yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
}

/// Where a source begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With the oldest message that is kept.
    #[default]
    Earliest,
    /// With the next message that comes.
    Latest,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The name or address; one of IPv6 without brackets.
    pub name: String,
    /// The port.
    pub port: u16,
}

/// An MQTT broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Where it is.
    pub host: Host,
    /// User and password.
    pub credentials: Option<(String, String)>,
}

/// What a source reads from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An MQTT broker.
    Mqtt(Broker),
    /// Kafka brokers.
    Kafka(Vec<Host>),
}

impl SourceDefinition {
    /// Checks it for a stream of a format. An error is the field that is wrong and what it may be.
    pub fn check(&self, format: Format) -> Result<Kind, (&'static str, &'static str)> {
        if self.topic.is_empty() || self.topic.len() > TOPIC_LEN_MAX {
            return Err(("topic", "1 to 249 bytes"));
        }
        if self.topic.chars().any(char::is_control) {
            return Err(("topic", "no control characters"));
        }
        let name = self.name();
        if name.is_empty() || name.len() > SOURCE_NAME_LEN_MAX {
            return Err(("name", "1 to 100 bytes; give one where the topic is longer"));
        }
        if name.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
            return Err(("name", "no control characters, quotes or backslashes"));
        }
        match (&self.mqtt, &self.kafka) {
            (Some(url), None) => {
                if self.start.is_some() {
                    return Err(("start", "only for kafka"));
                }
                if self.qos.is_some_and(|qos| qos > 1) {
                    return Err(("qos", "0 or 1"));
                }
                if self.sensor_level == Some(0) {
                    return Err(("sensor_level", "at least 1"));
                }
                if self.sensor_level.is_some() && format != Format::Line {
                    return Err(("sensor_level", "only for the format line"));
                }
                if !is_filter(&self.topic) {
                    return Err(("topic", "`+` fills a level, `#` the last one"));
                }
                let broker = Broker::parse(url).ok_or((
                    "mqtt",
                    "mqtt://host:1883 or mqtt://user:password@host:1883; mqtts is not supported",
                ))?;
                Ok(Kind::Mqtt(broker))
            }
            (None, Some(hosts)) => {
                if self.qos.is_some() {
                    return Err(("qos", "only for mqtt"));
                }
                if self.sensor_level.is_some() {
                    return Err(("sensor_level", "only for mqtt"));
                }
                let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
                if !self.topic.bytes().all(allowed) {
                    return Err(("topic", "a Kafka topic has letters, digits, `.`, `_` and `-`"));
                }
                let hosts: Option<Vec<Host>> =
                    hosts.split(',').map(|host| Host::parse(host.trim(), 9092)).collect();
                hosts.map(Kind::Kafka).ok_or(("kafka", "host:9092, several with commas between"))
            }
            _ => Err(("mqtt", "give exactly one of mqtt and kafka")),
        }
    }

    /// Its name: that given, or `mqtt:TOPIC`, `kafka:TOPIC`.
    pub fn name(&self) -> String {
        let kind = if self.mqtt.is_some() { "mqtt" } else { "kafka" };
        self.name.clone().unwrap_or_else(|| format!("{kind}:{}", self.topic))
    }

    /// The same for whoever asks: without the password.
    pub fn without_password(&self) -> Self {
        let mut shown = self.clone();
        if let Some(url) = &mut shown.mqtt
            && let Some((before, rest)) = url.split_once("://")
            && let Some((login, host)) = rest.rsplit_once('@')
            && let Some((user, _)) = login.split_once(':')
        {
            *url = format!("{before}://{user}:***@{host}");
        }
        shown
    }
}

/// The level of a topic, from 1, that names a sensor.
pub fn level(topic: &str, level: u8) -> Option<&str> {
    topic.split('/').nth(usize::from(level).checked_sub(1)?).filter(|level| !level.is_empty())
}

fn is_filter(topic: &str) -> bool {
    let last = topic.split('/').count() - 1;
    topic.split('/').enumerate().all(|(at, level)| match level {
        "+" => true,
        "#" => at == last,
        level => !level.contains(['+', '#']),
    })
}

impl Broker {
    fn parse(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("mqtt://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, host) = match rest.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, rest),
        };
        let credentials = match login {
            Some(login) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                Some((user.to_owned(), password.to_owned()))
            }
            None => None,
        };
        Some(Self { host: Host::parse(host, 1883)?, credentials })
    }
}

impl Host {
    fn parse(text: &str, port: u16) -> Option<Self> {
        let (name, given) = match text.strip_prefix('[') {
            Some(rest) => {
                let (name, port) = rest.split_once(']')?;
                (name, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => match text.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            },
        };
        let port = given.map_or(Ok(port), str::parse).ok().filter(|port| *port > 0)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-:%".contains(&b);
        if name.is_empty() || name.len() > 255 || !name.bytes().all(allowed) {
            return None;
        }
        Some(Self { name: name.to_owned(), port })
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Kind, (&'static str, &'static str)> {
        serde_json::from_str::<SourceDefinition>(json).unwrap().check(Format::Line)
    }

    fn host(name: &str, port: u16) -> Host {
        Host { name: name.to_owned(), port }
    }

    #[test]
    fn addresses_are_read_with_their_usual_ports_and_credentials() {
        let plain = check(r#"{"mqtt": "mqtt://broker", "topic": "plant/+/temperature"}"#).unwrap();
        assert_eq!(plain, Kind::Mqtt(Broker { host: host("broker", 1883), credentials: None }));
        let known = check(r#"{"mqtt": "mqtt://me:p@ss:w@[::1]:18830/", "topic": "a/#"}"#).unwrap();
        let credentials = Some(("me".to_owned(), "p@ss:w".to_owned()));
        assert_eq!(known, Kind::Mqtt(Broker { host: host("::1", 18830), credentials }));
        let kafka = check(r#"{"kafka": "k1, k2:9093", "topic": "readings"}"#).unwrap();
        assert_eq!(kafka, Kind::Kafka(vec![host("k1", 9092), host("k2", 9093)]));
        assert_eq!(host("::1", 5).to_string(), "[::1]:5");
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_field() {
        for (json, field) in [
            (r#"{"topic": "a"}"#, "mqtt"),
            (r#"{"mqtt": "mqtt://b", "kafka": "b", "topic": "a"}"#, "mqtt"),
            (r#"{"mqtt": "mqtts://b", "topic": "a"}"#, "mqtt"),
            (r#"{"mqtt": "mqtt://b:0", "topic": "a"}"#, "mqtt"),
            (r#"{"mqtt": "mqtt://", "topic": "a"}"#, "mqtt"),
            (r#"{"mqtt": "mqtt://b", "topic": ""}"#, "topic"),
            (r#"{"mqtt": "mqtt://b", "topic": "a/#/b"}"#, "topic"),
            (r#"{"mqtt": "mqtt://b", "topic": "a+/b"}"#, "topic"),
            (r#"{"mqtt": "mqtt://b", "topic": "a", "qos": 2}"#, "qos"),
            (r#"{"mqtt": "mqtt://b", "topic": "a", "sensor_level": 0}"#, "sensor_level"),
            (r#"{"mqtt": "mqtt://b", "topic": "a", "start": "latest"}"#, "start"),
            (r#"{"kafka": "b:", "topic": "a"}"#, "kafka"),
            (r#"{"kafka": "b", "topic": "a/b"}"#, "topic"),
            (r#"{"kafka": "b", "topic": "a", "qos": 1}"#, "qos"),
            (r#"{"kafka": "b", "topic": "a", "name": "\"x\""}"#, "name"),
        ] {
            assert_eq!(check(json).unwrap_err().0, field, "{json}");
        }
        let text = r#"{"mqtt": "mqtt://b", "topic": "a/b", "sensor_level": 2}"#;
        let source: SourceDefinition = serde_json::from_str(text).unwrap();
        assert_eq!(source.check(Format::Csv).unwrap_err().0, "sensor_level");
        assert!(serde_json::from_str::<SourceDefinition>(r#"{"topics": "a"}"#).is_err());
    }

    #[test]
    fn a_level_of_a_topic_is_counted_from_one_and_must_be_there() {
        assert_eq!(level("plant/press-7/temperature", 2), Some("press-7"));
        assert_eq!(level("plant//x", 2), None);
        assert_eq!((level("plant", 2), level("plant", 0)), (None, None));
    }

    #[test]
    fn a_password_is_not_shown() {
        let source = |url: &str| SourceDefinition { mqtt: Some(url.into()), ..Default::default() };
        for (url, shown) in [
            ("mqtt://me:secret@b:1883", "mqtt://me:***@b:1883"),
            ("mqtt://me:s@cr:et@b", "mqtt://me:***@b"),
            ("mqtt://me@b", "mqtt://me@b"),
            ("mqtt://b:1883", "mqtt://b:1883"),
        ] {
            assert_eq!(source(url).without_password().mqtt.as_deref(), Some(shown));
        }
    }
}
