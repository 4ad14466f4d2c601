//! What lies outside of the sandbox and must stay untouched.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::World;

/// A TCP server of the host, on loopback.
#[derive(Debug)]
pub struct TcpServer(TcpListener);

impl TcpServer {
    /// Listens on a free port of 127.0.0.1, or of both families with `dual`.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        listener.set_nonblocking(true).expect("a non-blocking listener");
        // So that a SYN with data is taken: TCP_FASTOPEN.
        let queue = 8_i32;
        let _ = nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::ReuseAddr, &true);
        fast_open(&listener, queue);
        Self(listener)
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("the listener's address")
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address().port()
    }

    /// Its port as an argument.
    pub fn port_text(&self) -> String {
        self.port().to_string()
    }

    /// How many connections have come in since last asked. The kernel completes them before `connect` returns,
    /// so after the program's end none is on its way.
    pub fn connections(&self) -> usize {
        std::iter::from_fn(|| self.0.accept().ok()).count()
    }

    /// The listener itself, to serve from.
    pub fn listener(&self) -> &TcpListener {
        &self.0
    }
}

fn fast_open(listener: &TcpListener, queue: i32) {
    use std::os::fd::AsRawFd;
    // SAFETY: the value's address and size are those of a live i32.
    // WHY: nix has no such option.
    unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const queue).cast(),
            size_of::<i32>() as libc::socklen_t,
        );
    }
}

/// A Unix stream server of the host, which everybody may connect to.
#[derive(Debug)]
pub struct UnixServer(UnixListener);

impl UnixServer {
    /// Listens at a path of the world.
    pub fn start(world: &World, name: &str) -> Self {
        let path = world.path(name);
        let listener = UnixListener::bind(&path).expect("a socket of the test's own");
        world.give_away(&path, 0o777);
        listener.set_nonblocking(true).expect("a non-blocking listener");
        Self(listener)
    }

    /// Listens at an abstract name.
    pub fn start_abstract(name: &str) -> Self {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("an abstract socket");
        listener.set_nonblocking(true).expect("a non-blocking listener");
        Self(listener)
    }

    /// How many connections have come in.
    pub fn connections(&self) -> usize {
        std::iter::from_fn(|| self.0.accept().ok()).count()
    }
}

/// A Unix datagram socket of the host, which everybody may send to.
#[derive(Debug)]
pub struct UnixMailbox(UnixDatagram);

impl UnixMailbox {
    /// Binds it at a path of the world.
    pub fn start(world: &World, name: &str) -> Self {
        let path = world.path(name);
        let socket = UnixDatagram::bind(&path).expect("a socket of the test's own");
        world.give_away(&path, 0o777);
        socket.set_nonblocking(true).expect("a non-blocking socket");
        Self(socket)
    }

    /// How many datagrams have come in.
    pub fn messages(&self) -> usize {
        std::iter::from_fn(|| self.0.recv(&mut [0; 16]).ok()).count()
    }
}

/// A process of the same user outside of the sandbox: nothing but user ids would keep them apart.
#[derive(Debug)]
pub struct Outsider(Child);

impl Outsider {
    /// Starts it, with a word in its environment that must not be seen.
    pub fn start(world: &World, secret: &str) -> Self {
        let mut command = Command::new("sleep");
        command
            .arg("1000")
            .env("SECRET", secret)
            .current_dir(world.path("outside"))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if world.changes_uid() {
            command.uid(world.uid()).gid(world.uid());
        }
        Self(command.spawn().expect("sleep"))
    }

    /// Its process id as an argument.
    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Asserts that it runs on as it was started.
    pub fn assert_untouched(&mut self) {
        let ended = self.0.try_wait().expect("the outsider's status");
        assert_eq!(ended, None, "the process outside was ended");
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        for untraced in ["TracerPid:\t0", "State:\tS"] {
            assert!(
                status.contains(untraced),
                "the process outside was touched: {status}"
            );
        }
        // It inherited ours.
        assert_eq!(
            priority(&self.pid()),
            priority("self"),
            "its priority was changed"
        );
    }
}

/// Priority and nice value of a process.
fn priority(pid: &str) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    // After the command's name in parentheses they are the 16th and 17th fields.
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    fields.skip(15).take(2).map(str::to_owned).collect()
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
