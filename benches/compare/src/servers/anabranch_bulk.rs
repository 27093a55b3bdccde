//! Bulk UDP echo over anabranch. Apart, because this is where segmentation offload belongs: what arrives in one piece
//! goes back in one piece.

use super::Job;
use anabranch::net::UdpSocket;
use std::io;

pub async fn serve(job: Job) -> io::Result<()> {
    let socket = UdpSocket::bind(job.address).await?;
    socket.set_buffer_sizes(4 << 20, 4 << 20)?;
    socket.set_gro(true)?;
    job.ready();
    loop {
        // What one peer's datagram met is no reason to stop.
        let Ok(segments) = socket.recv_segments().await else { continue };
        let (from, segment_bytes) = (segments.from(), segments.segment_bytes());
        let _ = match segments.count_left() {
            1 => socket.send_to(segments.into_lease(), from).await,
            _ => socket.send_segments(segments.into_lease(), segment_bytes, from).await,
        };
    }
}
