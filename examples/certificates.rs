//! Makes certificates for trying things out: an authority, and a server and a client that it signs, as PEM files.
//!
//! Try it: `cargo run --example certificates -- --out certs --name localhost --name 127.0.0.1`, then
//! `cargo run --release --features tls-ring --example tls_echo -- --cert certs/server.pem --key certs/server.key` and
//! `openssl s_client -connect 127.0.0.1:7000 -CAfile certs/ca.pem`.
//!
//! They are not for production: the private key of the authority is thrown away, and nobody can take a certificate back.

#[path = "common/certificates.rs"]
mod certificates;

use certificates::{Authority, Issued, for_client, for_server, valid_for_days};
use clap::Parser;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Flags.
#[derive(Parser)]
struct Flags {
    /// Directory that the files are written to; it is made if it is not there.
    #[arg(long, default_value = "certs")]
    out: PathBuf,
    /// Name or IP address of the server; may be given several times.
    #[arg(long, default_values = ["localhost", "127.0.0.1", "::1"])]
    name: Vec<String>,
    /// Days that those of server and client are valid.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: u64,
    /// Name of the client.
    #[arg(long, default_value = "client")]
    client: String,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    fs::create_dir_all(&flags.out)?;
    let authority = Authority::new("An authority for trying things out").map_err(io::Error::other)?;
    let names: Vec<&str> = flags.name.iter().map(String::as_str).collect();
    let server = authority.issue(&names, |params| {
        for_server(params);
        valid_for_days(params, flags.days);
    });
    let client = authority.issue(&[&flags.client], |params| {
        for_client(params);
        valid_for_days(params, flags.days);
    });
    fs::write(flags.out.join("ca.pem"), &authority.pem)?;
    write(&flags.out, "server", &server.map_err(io::Error::other)?)?;
    write(&flags.out, "client", &client.map_err(io::Error::other)?)?;
    println!("ca.pem, server.pem, server.key, client.pem and client.key are in {}", flags.out.display());
    Ok(())
}

fn write(directory: &Path, name: &str, issued: &Issued) -> io::Result<()> {
    fs::write(directory.join(format!("{name}.pem")), &issued.certificate)?;
    fs::write(directory.join(format!("{name}.key")), &issued.key)
}
