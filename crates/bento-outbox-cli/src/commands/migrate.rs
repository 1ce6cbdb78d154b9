//! `migrate`: the tables.

use std::process::ExitCode;

use clap::Args;

use crate::connect;
use crate::failure::Result;
use crate::settings::Settings;
use crate::terminal;

/// Create or upgrade the tables
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox migrate
  bento-outbox migrate --print --database-url postgres://user@host/name")]
pub(crate) struct Migrate {
    /// Show the SQL and change nothing
    #[arg(long)]
    print: bool,
}

impl Migrate {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        if self.print {
            let sql = connect::database_created(&settings)
                .await?
                .store()
                .migrations();
            terminal::print(|out| writeln!(out, "{}", sql.trim_end()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let store = connect::database_created(&settings).await?.store();
        let applied = store.migrate().await?;
        terminal::say(match applied.as_slice() {
            [] => "the tables are up to date".to_string(),
            [version] => format!("applied migration {version}; the tables are up to date"),
            versions => format!(
                "applied {} migrations; the tables are up to date",
                versions.len()
            ),
        });
        Ok(ExitCode::SUCCESS)
    }
}
