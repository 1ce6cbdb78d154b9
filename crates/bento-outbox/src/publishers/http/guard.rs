//! Which addresses a name may lead to.
//!
//! A URL is written by the operator, but what its host's name resolves to is said by whoever runs
//! that name, and may change at any moment ("DNS rebinding"). So each address is judged after it was
//! resolved, and the very address that was judged is dialled.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;
use url::Host;

/// Resolves the names that a client dials, and refuses what they must not lead to.
///
/// A client that is given an address asks nobody: an address that stands in a URL is the operator's
/// own word. So is `localhost`, as long as it leads to this machine.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    allow: Allow,
    lookup: Lookup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allow {
    /// Where everybody on the internet gets to.
    Global,
    /// This machine, too.
    Loopback,
    /// Networks inside, too.
    Inside,
}

/// How a name becomes addresses: by the system, unless a test says them.
#[derive(Clone, Copy, Debug)]
enum Lookup {
    System,
    #[cfg(test)]
    Said(fn(&str) -> Vec<SocketAddr>),
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The same place for everybody.
    Global,
    /// This machine.
    Loopback,
    /// A network that only those inside get to: a receiver may well be there.
    Inside(&'static str),
    /// No receiver is there, or one that must not be asked: the metadata of a cloud.
    Forbidden(&'static str),
}

/// A name led to an address that it must not lead to.
#[derive(Debug)]
pub(super) struct Refused {
    name: String,
    address: IpAddr,
    place: Place,
}

impl Guard {
    pub(super) fn new(host: &Host<&str>, allow_private: bool) -> Self {
        let is_localhost = match host {
            Host::Domain(name) => {
                let name = name.trim_end_matches('.');
                name == "localhost" || name.ends_with(".localhost")
            }
            Host::Ipv4(_) | Host::Ipv6(_) => false,
        };
        let allow = match (allow_private, is_localhost) {
            (true, _) => Allow::Inside,
            (false, true) => Allow::Loopback,
            (false, false) => Allow::Global,
        };
        Self {
            allow,
            lookup: Lookup::System,
        }
    }

    /// All of a name's addresses, or none: one that leads elsewhere is reason enough.
    fn judged(&self, name: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let allowed = |place| match place {
            Place::Global => true,
            Place::Loopback => self.allow != Allow::Global,
            Place::Inside(_) => self.allow == Allow::Inside,
            Place::Forbidden(_) => false,
        };
        let refused = addresses.iter().find_map(|address| {
            let (address, place) = (address.ip(), Place::of(address.ip()));
            (!allowed(place)).then_some((address, place))
        });
        match refused {
            None => Ok(addresses),
            Some((address, place)) => Err(Refused {
                name: name.to_owned(),
                address,
                place,
            }),
        }
    }
}

impl Service<Name> for Guard {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.clone();
        Box::pin(async move {
            let addresses = guard.lookup.addresses(name.as_str()).await?;
            Ok(guard.judged(name.as_str(), addresses)?.into_iter())
        })
    }
}

impl Lookup {
    async fn addresses(self, name: &str) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((name, 0)).await?.collect()),
            #[cfg(test)]
            Self::Said(addresses) => Ok(addresses(name)),
        }
    }
}

impl Place {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    /// The registry of special addresses of IANA (RFC 6890 and what followed), and the addresses at
    /// which clouds tell machines their secrets.
    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [0, ..] => Self::Forbidden("unspecified"),
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Inside("private"),
            [100, 100, 100, 200] | [168, 63, 129, 16] => Self::Forbidden("cloud metadata"),
            [100, 64..=127, ..] => Self::Inside("carrier-grade NAT"),
            [127, ..] => Self::Loopback,
            [169, 254, ..] => Self::Forbidden("link-local"),
            [192, 0, 0, _] => Self::Forbidden("protocol assignment"),
            [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => {
                Self::Forbidden("documentation")
            }
            [192, 88, 99, _] => Self::Forbidden("6to4 relay"),
            [198, 18..=19, ..] => Self::Forbidden("benchmarking"),
            [224..=239, ..] => Self::Forbidden("multicast"),
            [240..=255, ..] => Self::Forbidden("reserved"),
            _ => Self::Global,
        }
    }

    /// An address that is an IPv4 one in other clothes leads where that one leads; a tunnel leads
    /// nowhere that could be known. Of the rest only global unicast is anybody's.
    fn of_v6(address: Ipv6Addr) -> Self {
        let embedded = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Forbidden("unspecified"),
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // IPv4-mapped (RFC 4291), and the prefix that every NAT64 knows (RFC 6052).
            [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                embedded(high, low)
            }
            [0, 0, 0, 0, 0, 0, _, _] => Self::Forbidden("IPv4-compatible"),
            [0x64, 0xff9b, ..] => Self::Forbidden("local NAT64"),
            [0x2001, 0, ..] => Self::Forbidden("Teredo tunnel"),
            [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Forbidden("documentation"),
            [0x2001, 1..=0x1ff, ..] => Self::Forbidden("protocol assignment"),
            [0x2002, ..] => Self::Forbidden("6to4 tunnel"),
            [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Self::Forbidden("ISATAP tunnel"),
            [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Self::Forbidden("cloud metadata"),
            [0xfc00..=0xfdff, ..] => Self::Inside("private"),
            [0xfe80..=0xfeff, ..] => Self::Forbidden("link-local"),
            [0xff00..=0xffff, ..] => Self::Forbidden("multicast"),
            [0x2000..=0x3fff, ..] => Self::Global,
            _ => Self::Forbidden("reserved"),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, address, .. } = self;
        write!(f, "{name} leads to {address}, ")?;
        match self.place {
            Place::Loopback => write!(f, "which is this machine: {INSIDE}"),
            Place::Inside(kind) => write!(f, "a {kind} address: {INSIDE}"),
            Place::Forbidden(kind) => write!(f, "a {kind} address, where no receiver may be"),
            Place::Global => write!(f, "where it may lead"),
        }
    }
}

const INSIDE: &str = "where the receiver is meant to be there, add allow_private=true to its URL";

impl Error for Refused {}

#[cfg(test)]
impl Guard {
    /// One whose names lead where a test says.
    pub(super) fn with_names(mut self, said: fn(&str) -> Vec<SocketAddr>) -> Self {
        self.lookup = Lookup::Said(said);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(host: &str, allow_private: bool, address: &str) -> bool {
        let host = Host::Domain(host);
        let address = SocketAddr::new(address.parse().unwrap(), 0);
        Guard::new(&host, allow_private)
            .judged("name", vec![address])
            .is_ok()
    }

    const GLOBAL: &[&str] = &[
        "1.1.1.1",
        "8.8.8.8",
        "11.0.0.1",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.1",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2a00::1",
        "3ffe::1",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ];
    const INSIDE: &[&str] = &[
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.127.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "192.168.255.255",
        "fc00::1",
        "fd12:3456::1",
        "::ffff:10.0.0.1",
        "::ffff:192.168.1.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::ac10:1",
    ];
    const LOOPBACK: &[&str] = &[
        "127.0.0.1",
        "127.1.2.3",
        "127.255.255.255",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::127.0.0.1",
    ];
    const FORBIDDEN: &[&str] = &[
        "0.0.0.0",
        "0.1.2.3",
        "100.100.100.200",
        "168.63.129.16",
        "169.254.0.1",
        "169.254.169.254",
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::2",
        "::7f00:1",
        "::8.8.8.8",
        "::ffff:0:7f00:1",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::224.0.0.1",
        "64:ff9b:1::7f00:1",
        "64:ff9b:1::8.8.8.8",
        "64:ff9b:1:7f00:0:100::",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2002:808:808::1",
        "2606:4700::5efe:7f00:1",
        "2606:4700::200:5efe:a00:1",
        "2606:4700::5efe:808:808",
        "3fff::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::5efe:a00:1",
        "febf::1",
        "fec0::1",
        "feff::1",
        "ff02::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];

    #[test]
    fn every_address_is_known_for_what_it_is() {
        let table = [
            (GLOBAL, [true, true, true]),
            (LOOPBACK, [false, true, true]),
            (INSIDE, [false, false, true]),
            (FORBIDDEN, [false, false, false]),
        ];
        for (addresses, [by_name, by_localhost, inside]) in table {
            for address in addresses {
                assert_eq!(
                    is_allowed("a.example", false, address),
                    by_name,
                    "{address}"
                );
                assert_eq!(
                    is_allowed("localhost", false, address),
                    by_localhost,
                    "{address}"
                );
                assert_eq!(is_allowed("a.example", true, address), inside, "{address}");
            }
        }
    }

    #[test]
    fn only_localhost_may_lead_to_this_machine() {
        for name in ["localhost", "localhost.", "a.localhost", "a.localhost."] {
            assert!(is_allowed(name, false, "127.0.0.1"), "{name}");
        }
        for name in ["localhost.example", "notlocalhost", "local", ""] {
            assert!(!is_allowed(name, false, "127.0.0.1"), "{name}");
        }
    }

    #[test]
    fn one_bad_address_spoils_the_name_and_the_reason_says_what_to_do() {
        let guard = Guard::new(&Host::Domain("a.example"), false);
        let judged = |addresses: &[&str]| {
            let parsed = addresses
                .iter()
                .map(|ip| SocketAddr::new(ip.parse().unwrap(), 0));
            let judged = guard.judged("a.example", parsed.collect());
            judged.map_err(|refused| refused.to_string())
        };
        assert_eq!(judged(&["1.1.1.1", "2606:4700::1111"]).unwrap().len(), 2);
        assert_eq!(
            judged(&["1.1.1.1", "10.0.0.7"]).unwrap_err(),
            "a.example leads to 10.0.0.7, a private address: where the receiver is meant to be there, add \
             allow_private=true to its URL"
        );
        assert_eq!(
            judged(&["169.254.169.254"]).unwrap_err(),
            "a.example leads to 169.254.169.254, a link-local address, where no receiver may be"
        );
    }
}
