//! A moment, as exactly as every supported database keeps it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// A moment in UTC, in whole microseconds, from year 1 to year 9999.
///
/// Written and read as RFC 3339: `2013-01-01T05:17:00.000000Z`. User time is data only: claims,
/// leases and retention go by the database's clock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp {
    micros: i64,
}

/// 0001-01-01T00:00:00Z and the last microsecond of 9999: what RFC 3339 can write.
const RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

impl Timestamp {
    /// The moment it is now by this machine's clock.
    pub fn now() -> Self {
        Self::clamped(Utc::now().timestamp_micros())
    }

    /// The moment `micros` microseconds after (or before) 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] outside the years 1 to 9999.
    pub fn from_unix_micros(micros: i64) -> Result<Self, Error> {
        if RANGE.contains(&micros) {
            Ok(Self { micros })
        } else {
            Err(Error::new(
                ErrorKind::InvalidEvent,
                "a time outside the years 1 to 9999",
            ))
        }
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub fn unix_micros(self) -> i64 {
        self.micros
    }

    /// How long before `later` this was; zero when it was not before.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_micros(u64::try_from(later.micros.saturating_sub(self.micros)).unwrap_or(0))
    }

    /// This moment and `duration` more, at the latest the end of year 9999.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::clamped(self.micros.saturating_add(micros))
    }

    /// The nearest moment inside the range, for a time that a database kept.
    pub(crate) fn clamped(micros: i64) -> Self {
        Self {
            micros: micros.clamp(*RANGE.start(), *RANGE.end()),
        }
    }

    pub(crate) fn to_chrono(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.micros).unwrap_or_default()
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let distance = Duration::from_micros(time.micros.unsigned_abs());
        if time.micros < 0 {
            UNIX_EPOCH - distance
        } else {
            UNIX_EPOCH + distance
        }
    }
}

impl TryFrom<SystemTime> for Timestamp {
    type Error = Error;

    fn try_from(time: SystemTime) -> Result<Self, Error> {
        let micros = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => {
                i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
            }
        };
        Self::from_unix_micros(micros)
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        DateTime::parse_from_rfc3339(text)
            .map_err(|_| {
                let shown: String = text.chars().take(40).collect();
                Error::new(
                    ErrorKind::InvalidEvent,
                    format!("{shown:?} is not a time in RFC 3339, as 2013-01-01T05:17:00Z"),
                )
            })
            .and_then(|time| Self::from_unix_micros(time.timestamp_micros()))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            &self
                .to_chrono()
                .to_rfc3339_opts(SecondsFormat::Micros, true),
        )
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_without_a_zone_or_out_of_range_are_refused() {
        for text in [
            "2013-01-01T05:17:00",
            "10000-01-01T00:00:00Z",
            "0000-12-31T23:59:59Z",
            "yesterday",
            "",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text:?}");
        }
        assert!(Timestamp::try_from(UNIX_EPOCH + Duration::from_secs(1 << 60)).is_err());
        assert_eq!(
            Timestamp::now().after(Duration::MAX).to_string(),
            "9999-12-31T23:59:59.999999Z"
        );
    }

    proptest! {
        #[test]
        fn text_and_system_time_lose_nothing(micros in RANGE) {
            let time = Timestamp::from_unix_micros(micros).unwrap();
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
            prop_assert_eq!(Timestamp::try_from(SystemTime::from(time)).unwrap(), time);
        }
    }
}
