//! RabbitMQ.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{Recipe, Server, answers, find_program, free_port, off_runtime};

/// A RabbitMQ server of the test's own, to be killed and paused at will.
pub type RabbitMqServer = Server<RabbitMq>;

/// The RabbitMQ server of this test process, with [`SMALL`] messages and the user [`BOB`]. Tests
/// share it, so each names its exchanges and queues after itself. The first caller waits for its
/// start: many seconds.
///
/// # Panics
///
/// If it does not come up.
pub fn shared_rabbitmq() -> &'static RabbitMqServer {
    static SHARED: OnceLock<RabbitMqServer> = OnceLock::new();
    SHARED.get_or_init(|| RabbitMqServer::start_blocking(SMALL, USERS))
}

/// A setting by which no message may have more than 200,000 bytes.
pub const SMALL: &str = "max_message_size = 200000";

/// User and password of one who may create nothing, may write to exchanges whose names begin with
/// `bobs`, and to `bobs-topics` only under topics that begin with `may.`.
pub const BOB: &str = "bob:s3cr%3Aet";

const USERS: &str = r#"{
    "vhosts": [{"name": "/"}],
    "users": [
        {"name": "guest", "password": "guest", "tags": "administrator"},
        {"name": "bob", "password": "s3cr:et", "tags": ""}
    ],
    "permissions": [
        {"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
        {"user": "bob", "vhost": "/", "configure": "^$", "write": "^bobs", "read": ".*"}
    ],
    "topic_permissions": [
        {"user": "bob", "vhost": "/", "exchange": "bobs-topics", "write": "^may\\.", "read": ".*"}
    ]
}"#;

impl Server<RabbitMq> {
    /// Starts a RabbitMQ server with these lines in `rabbitmq.conf` and these definitions, in
    /// RabbitMQ's JSON, of virtual hosts and users; without any it has `/` and `guest`.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start_with(settings: &str, definitions: &str) -> Self {
        Self::from_recipe(RabbitMq::new(settings, definitions)).await
    }

    /// Like [`start_with`](Self::start_with), for callers without a runtime.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub fn start_blocking(settings: &str, definitions: &str) -> Self {
        Self::from_recipe_blocking(RabbitMq::new(settings, definitions))
    }

    /// Runs `rabbitmqctl` with these words.
    ///
    /// # Panics
    ///
    /// If it fails, with what it said.
    pub async fn ctl(&self, words: &[&str]) {
        let mut command = self.recipe().script("rabbitmqctl", self.folder());
        command.args(words).current_dir(self.folder());
        let output = off_runtime(move || command.output()).await;
        let output = output.unwrap_or_else(|e| panic!("cannot run rabbitmqctl: {e}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {words:?}: {said}");
    }
}

/// How RabbitMQ is started: with a folder, a name and ports of its own, so that it knows of no
/// other one on the machine.
pub struct RabbitMq {
    settings: String,
    definitions: String,
    /// Where its commands reach it.
    control_port: u16,
    /// Where Erlang looks up where that is. The machine's own one would outlive the server.
    names_port: u16,
}

/// The scripts themselves: what Debian has on its PATH runs them as another user, elsewhere.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

impl RabbitMq {
    fn new(settings: &str, definitions: &str) -> Self {
        Self {
            settings: settings.into(),
            definitions: definitions.into(),
            control_port: free_port(),
            names_port: free_port(),
        }
    }

    /// A script of RabbitMQ's, which finds in its environment which server it is about.
    fn script(&self, name: &str, folder: &Path) -> Command {
        let script = Path::new(SCRIPTS).join(name);
        let folders = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"].map(PathBuf::from);
        let script = match script.is_file() {
            true => script,
            false => find_program(name, &folders, "rabbitmq-server"),
        };
        let mut command = Command::new(script);
        command
            // Erlang's cookie is kept there.
            .env("HOME", folder)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.names_port.to_string())
            .env("RABBITMQ_NODENAME", "bento@localhost")
            .env("RABBITMQ_DIST_PORT", self.control_port.to_string())
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("logs"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            // Otherwise a shell stays between, and does not pass signals on.
            .env("RABBITMQ_ALLOW_INPUT", "1");
        command
    }
}

impl Recipe for RabbitMq {
    const NAME: &'static str = "rabbitmq";

    fn prepare(&self, folder: &Path) {
        for (name, text) in [("plugins", "[]."), ("definitions.json", &self.definitions)] {
            let written = fs::write(folder.join(name), text);
            written.unwrap_or_else(|e| panic!("no {name} in {}: {e}", folder.display()));
        }
    }

    fn command(&self, folder: &Path, port: u16) -> Command {
        let mut settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nlog.file = false\nlog.console = true\n\
             log.console.level = warning\ndisk_free_limit.absolute = 1MB\n{}\n",
            self.settings
        );
        if !self.definitions.is_empty() {
            let file = folder.join("definitions.json");
            settings += &format!("load_definitions = {}\n", file.display());
        }
        let written = fs::write(folder.join("rabbitmq.conf"), settings);
        written.unwrap_or_else(|e| panic!("no configuration in {}: {e}", folder.display()));
        let server = self.script("rabbitmq-server", folder);
        let names = find_program("epmd", &[], "rabbitmq-server");
        // The names' server is a child as well, in the foreground, and so goes with the others.
        let mut command = Command::new("sh");
        command
            .args(["-c", "\"$0\" -address 127.0.0.1 & exec \"$1\""])
            .arg(names)
            .arg(server.get_program())
            .envs(
                server
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            // One scheduler: there are other things to do on this machine.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-noinput +S 1:1 +A 4 -kernel inet_dist_use_interface {127,0,0,1}",
            );
        command
    }

    /// RabbitMQ listens when all else is done.
    fn is_ready(&self, port: u16) -> bool {
        answers(port, b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00")
    }

    fn url(&self, port: u16) -> String {
        format!("amqp://127.0.0.1:{port}")
    }
}
