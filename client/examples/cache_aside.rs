//! Cache-aside by hand: look into the cache, then into the database, then fill the cache.
//!
//! The cache is a help, not a need: when it cannot be reached in time, the database answers.

use std::time::Duration;

use kiln_client::{Client, Typed};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
}

/// Stands for a database.
struct Database;

impl Database {
    async fn user(&self, id: u64) -> User {
        tokio::time::sleep(Duration::from_millis(20)).await;
        User { id, name: format!("user number {id}") }
    }

    async fn rename(&self, _: u64, _: &str) {}
}

struct Users {
    database: Database,
    cache: Typed<User>,
}

impl Users {
    async fn get(&self, id: u64) -> User {
        let key = format!("user:{id}");
        match self.cache.get(&key).await {
            Ok(Some(user)) => {
                println!("{key}: from the cache");
                return user;
            }
            Ok(None) => println!("{key}: from the database"),
            Err(error) => println!("{key}: from the database, as {error}"),
        }
        let user = self.database.user(id).await;
        if let Err(error) = self.cache.set(&key, &user, Duration::from_secs(300)).await {
            println!("{key}: not kept, as {error}");
        }
        user
    }

    /// First the database, then the cache: a reader in between keeps the old one for a moment, but
    /// never for long.
    async fn rename(&self, id: u64, name: &str) -> Result<(), kiln_client::Error> {
        self.database.rename(id, name).await;
        self.cache.delete(&format!("user:{id}")).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "kiln://127.0.0.1:7311".to_owned());
    let client = Client::connect(&address).await?;
    let cache = client.with_timeout(Duration::from_millis(250)).typed();
    let users = Users { database: Database, cache };

    for _ in 0..2 {
        println!("{:?}", users.get(7).await);
    }
    users.rename(7, "another name").await?;
    println!("{:?}", users.get(7).await);
    client.delete("user:7").await?;
    Ok(())
}
