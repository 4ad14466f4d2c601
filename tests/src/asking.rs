//! A daemon asked through the library's own client: what every test of the protocol says again and again.

use provost::client::{Client, ClientError, Followed};
use provost::protocol::RpcError;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{DEADLINE, Served};

/// Does this with threads of its own, in time.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async { timeout(DEADLINE, work).await.expect("in time") })
}

/// A connection.
pub async fn connect(served: &Served) -> Client {
    Client::connect(served.socket())
        .await
        .expect("a daemon that serves")
}

/// Asks for what is not refused.
pub async fn call(client: &Client, method: &str, params: Value) -> Value {
    client
        .call(method, &params)
        .await
        .unwrap_or_else(|error| panic!("{method} {params}: {error}"))
}

/// Asks for what is refused; how.
pub async fn refused(client: &Client, method: &str, params: Value) -> RpcError {
    match client.call::<Value>(method, &params).await {
        Err(ClientError::Refused(error)) => *error,
        other => panic!("{method} {params}: {other:?}"),
    }
}

/// Follows a process.
pub async fn follow(client: &Client, process: &str, after_seq: u64) -> Followed {
    let params = json!({ "process": process, "after_seq": after_seq });
    client
        .follow("process/follow", &params)
        .await
        .expect("a process that is there")
}
