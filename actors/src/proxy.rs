//! A proxy for one process, through which it reaches hosts by their names (`net.proxy`).
//!
//! Addresses cannot tell hosts apart that share one; here the name decides, for each connection. A tunnel (CONNECT) to an
//! allowed name carries TLS whose first message asks for that very name, or nothing. A plain request goes to the host
//! that it names. What is refused becomes a denial before the answer is sent.
//!
//! It listens on loopback, where every program of the machine could connect: whoever does not know the word that only the
//! process is told gets nothing.

mod hello;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use provost_sandbox::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget};
use provost_sandbox::observe::notify::look_up;
use provost_sandbox::policy::{NetPolicy, NetRule, Protocol};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

#[cfg(any(test, feature = "fuzzing"))]
pub use self::hello::tls_hello;
use self::hello::{HELLO_BYTES_MAX, Hello};

/// Connections of one process at the same time.
const CONNECTIONS_MAX: usize = 256;
/// How long a client may take to say what it wants, and a host to be found and to answer the connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to accept a connection when that fails: the listener stays readable, and nothing tells when there are
/// descriptors again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);
/// What clients call themselves towards the proxy.
const USER: &str = "provost";

/// Told of what is refused.
pub(crate) type Report =
    Arc<dyn Fn(Denial) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

type Body = BoxBody<Bytes, hyper::Error>;

/// Where the proxy of a process will be.
#[derive(Debug)]
pub(crate) struct ProxyPort {
    listener: std::net::TcpListener,
    address: SocketAddr,
    word: String,
}

/// What it takes to open the proxy of a process again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyPlace {
    port: u16,
    word: String,
}

impl ProxyPort {
    /// Takes a port on loopback.
    pub(crate) fn open() -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            word: Uuid::new_v4().simple().to_string(),
        })
    }

    /// Takes the same port again: the variables that name it are in its process's environment.
    pub(crate) fn reopen(place: &ProxyPlace) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", place.port))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            word: place.word.clone(),
        })
    }

    /// What it takes to open it again.
    pub(crate) fn place(&self) -> ProxyPlace {
        ProxyPlace {
            port: self.address.port(),
            word: self.word.clone(),
        }
    }

    /// The variables by which programs find it.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let url = format!("http://{USER}:{}@{}", self.word, self.address);
        let names = [
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
        ];
        let proxies = names.map(|name| (name, url.clone()));
        // What goes around it is refused.
        let none = ["no_proxy", "NO_PROXY"].map(|name| (name, String::new()));
        proxies.into_iter().chain(none).collect()
    }

    /// What the process may do by itself: reach the proxy and what is allowed by address.
    pub(crate) fn direct(&self, net: &NetPolicy) -> NetPolicy {
        let mut net = net.clone();
        net.names.rules.clear();
        net.source.push_str("; names through the proxy only");
        net.allow.push(NetRule {
            net: self.address.ip().into(),
            port: Some(self.address.port()),
            protocol: Protocol::Tcp,
            source: "net.proxy".to_owned(),
        });
        net
    }
}

/// The proxy of one process. Dropping it ends every connection.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    draining: CancellationToken,
}

struct Shared {
    net: NetPolicy,
    authorization: String,
    report: Report,
    /// Connections about which nothing is decided yet.
    undecided: TaskTracker,
    room: Arc<Semaphore>,
    ended: CancellationToken,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.cancel();
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

impl Proxy {
    /// Begins to serve.
    pub(crate) fn serve(port: ProxyPort, net: NetPolicy, report: Report) -> io::Result<Self> {
        let plain = format!("{USER}:{}", port.word);
        let encoded = base64_simd::STANDARD.encode_to_string(plain.as_bytes());
        let shared = Arc::new(Shared {
            net,
            authorization: format!("Basic {encoded}"),
            report,
            undecided: TaskTracker::new(),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            ended: CancellationToken::new(),
        });
        let draining = CancellationToken::new();
        let listener = TcpListener::from_std(port.listener)?;
        let accepting = tokio::spawn(accept(shared.clone(), listener, draining.clone()));
        Ok(Self {
            shared,
            accepting: Some(accepting),
            draining,
        })
    }

    /// Takes what is still waiting, when nothing of the process lives, and waits until everything is decided, or until
    /// `patience` is over. True if everything is.
    pub(crate) async fn drain(mut self, patience: Duration) -> bool {
        self.draining.cancel();
        let decided = async {
            if let Some(accepting) = self.accepting.take() {
                let _ = accepting.await;
            }
            self.shared.undecided.close();
            self.shared.undecided.wait().await;
        };
        tokio::time::timeout(patience, decided).await.is_ok()
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, draining: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => take(&shared, stream).await,
            // No descriptors are left, perhaps; whoever waits goes on waiting.
            Err(error) => {
                tracing::warn!(%error, "the proxy of a process cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    // The runtime may not have noticed the last ones.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, _)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            take(&shared, stream).await;
        }
    }
}

async fn take(shared: &Arc<Shared>, stream: TcpStream) {
    let Ok(room) = shared.room.clone().try_acquire_owned() else {
        let target = DenialTarget::protocol("tcp");
        shared
            .refuse(target, "net.proxy: too many connections at once")
            .await;
        return;
    };
    let undecided = shared.undecided.token();
    let shared = shared.clone();
    tokio::spawn(async move {
        let serving = serve(shared.clone(), stream, undecided);
        tokio::select! {
            () = serving => {}
            () = shared.ended.cancelled() => {}
        }
        drop(room);
    });
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, undecided: TaskTrackerToken) {
    let service = service_fn(|request| {
        let (shared, undecided) = (shared.clone(), undecided.clone());
        async move { Ok::<_, Infallible>(shared.answer(request, undecided).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        // Who asks and leaves at once has asked.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // How a client ends its connection is its own business.
    let _ = connection.await;
}

/// A host that may be reached, and its name, where it was allowed by that.
struct Reached {
    stream: TcpStream,
    name: Option<String>,
}

impl Shared {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        undecided: TaskTrackerToken,
    ) -> Response<Body> {
        let known = request.headers().get(header::PROXY_AUTHORIZATION);
        if known.is_none_or(|value| value.as_bytes() != self.authorization.as_bytes()) {
            let mut response = said(
                StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                "this is another process's proxy",
            );
            let realm = HeaderValue::from_static("Basic realm=\"provost\"");
            response.headers_mut().insert(header::PROXY_AUTHENTICATE, realm);
            return response;
        }
        let tunnel = request.method() == Method::CONNECT;
        let Some((host, port)) = destination(request.uri(), tunnel) else {
            return said(
                StatusCode::BAD_REQUEST,
                "want CONNECT HOST:PORT, or METHOD http://HOST/…",
            );
        };
        let reached = match self.reach(&host, port).await {
            Ok(reached) => reached,
            Err((status, why)) => return said(status, &why),
        };
        if !tunnel {
            return match forward(request, reached.stream, self.ended.clone()).await {
                Ok(response) => response,
                Err(error) => said(StatusCode::BAD_GATEWAY, &error.to_string()),
            };
        }
        tokio::spawn(async move {
            let ended = self.ended.clone();
            tokio::select! {
                _ = self.tunnel(request, reached, port, undecided) => {}
                () = ended.cancelled() => {}
            }
        });
        Response::new(Full::default().map_err(|never| match never {}).boxed())
    }

    /// Connects to a host, if that is allowed.
    async fn reach(&self, host: &str, port: u16) -> Result<Reached, (StatusCode, String)> {
        let (addresses, name) = match host.parse::<IpAddr>() {
            Ok(address) => {
                let verdict = self.net.decide(Protocol::Tcp, address, port);
                if !verdict.allowed {
                    let target = DenialTarget::inet(address, port, "tcp");
                    return Err(self.refuse(target, &verdict.rule).await);
                }
                (vec![address], None)
            }
            Err(_) => {
                let verdict = self.net.decide_name(Protocol::Tcp, host, port);
                if !verdict.allowed {
                    return Err(self.refuse(named(host, port), &verdict.rule).await);
                }
                (self.look_up(host, port).await?, Some(host.to_owned()))
            }
        };
        let mut last = "it has no address".to_owned();
        for address in addresses {
            match tokio::time::timeout(PATIENCE, TcpStream::connect((address, port))).await {
                Ok(Ok(stream)) => return Ok(Reached { stream, name }),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = "no answer".to_owned(),
            }
        }
        Err((
            StatusCode::BAD_GATEWAY,
            format!("cannot connect to {host}:{port}: {last}"),
        ))
    }

    async fn look_up(&self, host: &str, port: u16) -> Result<Vec<IpAddr>, (StatusCode, String)> {
        let (net, name) = (self.net.clone(), host.to_owned());
        let looking = tokio::task::spawn_blocking(move || look_up(&net, &name));
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(Ok(Ok(addresses))) => Ok(addresses),
            Ok(Ok(Err(Some(why)))) => Err(self.refuse(named(host, port), &why).await),
            _ => Err((StatusCode::BAD_GATEWAY, format!("{host} is not found"))),
        }
    }

    async fn refuse(&self, target: DenialTarget, rule: &str) -> (StatusCode, String) {
        (self.report)(Denial {
            class: DenialClass::Network,
            operation: "connect".to_owned(),
            target,
            pid: None,
            comm: None,
            rule: rule.to_owned(),
            errno: "EACCES".to_owned(),
            certainty: Certainty::Observed,
            decision: Decision::Deny,
            allow: None,
        })
        .await;
        (StatusCode::FORBIDDEN, format!("refused by the sandbox: {rule}"))
    }

    /// Passes bytes on, once the first of them have shown that they are for the host that was allowed.
    async fn tunnel(
        &self,
        request: Request<Incoming>,
        mut reached: Reached,
        port: u16,
        undecided: TaskTrackerToken,
    ) -> io::Result<()> {
        let client = hyper::upgrade::on(request).await.map_err(io::Error::other)?;
        let mut client = TokioIo::new(client);
        if let Some(name) = &reached.name {
            let (first, said) = tokio::time::timeout(PATIENCE, first_bytes(&mut client)).await??;
            if said.as_deref() != Some(name) {
                let (target, rule) = match &said {
                    Some(other) => (
                        named(other, port),
                        format!("net.proxy: TLS for another name in a tunnel to {name}"),
                    ),
                    None => (
                        named(name, port),
                        format!(
                            "net.proxy: a tunnel to {name} carries TLS that says so, and nothing else"
                        ),
                    ),
                };
                // Who said nothing and left attempted nothing.
                if !first.is_empty() {
                    self.refuse(target, &rule).await;
                }
                return Ok(());
            }
            reached.stream.write_all(&first).await?;
        }
        drop(undecided);
        tokio::io::copy_bidirectional(&mut client, &mut reached.stream)
            .await
            .map(drop)
    }
}

/// The bytes up to the end of TLS's first message, and the name in it.
async fn first_bytes(client: &mut (impl AsyncReadExt + Unpin)) -> io::Result<(Vec<u8>, Option<String>)> {
    let mut bytes = Vec::new();
    loop {
        match hello::server_name(&bytes) {
            Hello::Name(name) => return Ok((bytes, Some(name))),
            Hello::NoName => return Ok((bytes, None)),
            Hello::Incomplete => {}
        }
        let room = HELLO_BYTES_MAX - bytes.len();
        if client.take(room as u64).read_buf(&mut bytes).await? == 0 {
            return Ok((bytes, None));
        }
    }
}

/// Where a request is to go: host in lower case, and port.
fn destination(uri: &Uri, tunnel: bool) -> Option<(String, u16)> {
    let authority = uri.authority()?;
    let default = match (tunnel, uri.scheme_str()) {
        (true, _) => None,
        (false, Some("http")) => Some(80),
        (false, _) => return None,
    };
    // Who names a user means something else than a host.
    if authority.as_str().contains('@') {
        return None;
    }
    let host = authority.host();
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let port = authority.port_u16().or(default).filter(|port| *port != 0)?;
    (!host.is_empty()).then_some((host, port))
}

/// Headers that are between two neighbours, and none of the host's business (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("proxy-connection"),
];

fn strip(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&listed) {
        headers.remove(name);
    }
}

/// Sends a plain request to the host that it names, and gives back the answer.
async fn forward(
    mut request: Request<Incoming>,
    stream: TcpStream,
    ended: CancellationToken,
) -> Result<Response<Body>, hyper::Error> {
    let host = request
        .uri()
        .authority()
        .and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().unwrap_or_default();
    strip(request.headers_mut());
    // One host is allowed, so that one is asked.
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer, or with the process.
    tokio::spawn(async move { ended.run_until_cancelled(connection).await.map(drop) });
    let mut response = sender.send_request(request).await?;
    strip(response.headers_mut());
    Ok(response.map(BodyExt::boxed))
}

fn named(host: &str, port: u16) -> DenialTarget {
    DenialTarget {
        port: Some(port),
        protocol: Some("tcp".to_owned()),
        ..DenialTarget::host(host)
    }
}

fn said(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::from(format!("provost: {text}\n"))
        .map_err(|never| match never {})
        .boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
