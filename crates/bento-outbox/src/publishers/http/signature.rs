//! Signatures by which a receiver knows who sends, after Standard Webhooks
//! (<https://www.standardwebhooks.com>, version 1, symmetric).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

use crate::error::{Error, ErrorKind, Result};

/// The secrets that a webhook is signed with: none, one, or several while one takes the place of
/// another. Every one signs, so that a receiver that knows any of them is content.
///
/// Written with spaces or commas between; each is base64, with or without `whsec_` before it.
/// Shown by `Debug` as their number.
///
/// ```
/// use bento_outbox::publishers::WebhookSecrets;
/// let secrets: WebhookSecrets = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?;
/// assert_eq!(format!("{secrets:?}"), "WebhookSecrets(1)");
/// # Ok::<_, bento_outbox::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct WebhookSecrets(Vec<hmac::Key>);

/// More secrets than this do not fit into the header that carries their signatures.
const SECRETS_MAX: usize = 8;

impl WebhookSecrets {
    /// The header `webhook-signature`; none without a secret. `timestamp` is in seconds since 1970.
    pub(super) fn signature(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
        let signed = format!("{id}.{timestamp}.");
        let signature = |key: &hmac::Key| {
            let mut context = hmac::Context::with_key(key);
            context.update(signed.as_bytes());
            context.update(body);
            format!("v1,{}", BASE64.encode(context.sign()))
        };
        let signatures: Vec<String> = self.0.iter().map(signature).collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

impl FromStr for WebhookSecrets {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::InvalidSetting`], which says which secret is wrong and never what it is.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |what: String| {
            let what = format!("webhook_secret {what}");
            Err(Error::new(ErrorKind::InvalidSetting, what))
        };
        let words = text.split([' ', ',']).filter(|word| !word.is_empty());
        let mut keys = Vec::new();
        for (word, number) in words.zip(1..) {
            let encoded = word.strip_prefix("whsec_").unwrap_or(word);
            match BASE64.decode(encoded) {
                Ok(key) if !key.is_empty() => keys.push(hmac::Key::new(hmac::HMAC_SHA256, &key)),
                _ => {
                    return refuse(format!(
                        "number {number} is not base64, as whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw is"
                    ));
                }
            }
        }
        match keys.len() {
            0 => refuse("has no secret in it".into()),
            1..=SECRETS_MAX => Ok(Self(keys)),
            _ => refuse(format!("has more than {SECRETS_MAX} secrets")),
        }
    }
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookSecrets({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn signature(secrets: &str) -> Option<String> {
        let secrets: WebhookSecrets = secrets.parse().unwrap();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        secrets.signature(id, 1_614_265_330, br#"{"test": 2432232314}"#)
    }

    #[test]
    fn a_signature_is_the_specifications() {
        assert_eq!(signature(SECRET).as_deref(), Some(SIGNATURE));
        assert_eq!(
            signature(&SECRET["whsec_".len()..]).as_deref(),
            Some(SIGNATURE)
        );
        assert_eq!(WebhookSecrets::default().signature("a", 1, b""), None);
    }

    #[test]
    fn every_secret_signs_in_the_order_given() {
        let both = signature(&format!("c2VjcmV0LXRoYXQtaXMtb2xk, {SECRET}")).unwrap();
        let (old, new) = both.split_once(' ').unwrap();
        assert_eq!(new, SIGNATURE);
        assert!(old.starts_with("v1,") && old != new);
    }

    #[test]
    fn a_wrong_secret_is_counted_and_not_shown() {
        for (text, said) in [
            ("", "no secret"),
            (" , ", "no secret"),
            ("whsec_", "number 1 is not base64"),
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw s3cr3t!", "number 2"),
            (
                "YQ==,YQ==,YQ==,YQ==,YQ==,YQ==,YQ==,YQ==,YQ==",
                "more than 8",
            ),
        ] {
            let error = text.parse::<WebhookSecrets>().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
