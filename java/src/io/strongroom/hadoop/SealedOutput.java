package io.strongroom.hadoop;

import io.strongroom.hadoop.Cobblestone.Scratch;
import java.io.IOException;
import java.io.OutputStream;
import java.security.GeneralSecurityException;
import org.apache.hadoop.fs.Abortable;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FSExceptionMessages;
import org.apache.hadoop.fs.StreamCapabilities;
import org.apache.hadoop.fs.Syncable;

/**
 * Seals what is written; the file exists for readers when {@link #close} has returned.
 *
 * <p>After a failed write nothing can be finished: {@code close} removes the file and throws. A chunk is sealed once, so
 * {@code hflush} passes on full chunks only, and the stream claims neither hflush nor hsync.
 */
final class SealedOutput extends OutputStream implements Syncable, Abortable, StreamCapabilities {
    /** What the file system does when the sealed bytes are complete, or will never be. */
    interface Ending {
        void finish(long plainSize) throws IOException;

        void abort() throws IOException;
    }

    private final FSDataOutputStream out;
    private final Cobblestone file;
    private final Ending ending;
    private final byte[] plain = new byte[Cobblestone.CHUNK];
    private int filled;
    private byte[] sealed = new byte[Cobblestone.SEALED_CHUNK];
    private int ready;
    private long chunk;
    private long size;
    private IOException failed;
    private boolean closed;

    /** Writes the prefix. */
    SealedOutput(FSDataOutputStream out, Cobblestone file, byte[] prefix, Ending ending) throws IOException {
        this.out = out;
        this.file = file;
        this.ending = ending;
        out.write(prefix);
    }

    @Override
    public synchronized void write(byte[] in, int at, int count) throws IOException {
        check();
        try {
            int from = at;
            int left = count;
            while (left > 0) {
                if (filled == 0 && left >= Cobblestone.CHUNK) {
                    seal(in, from, Cobblestone.CHUNK);
                    from += Cobblestone.CHUNK;
                    left -= Cobblestone.CHUNK;
                    continue;
                }
                int n = Math.min(left, Cobblestone.CHUNK - filled);
                System.arraycopy(in, from, plain, filled, n);
                filled += n;
                from += n;
                left -= n;
                if (filled == Cobblestone.CHUNK) {
                    seal(plain, 0, filled);
                    filled = 0;
                }
            }
            size += count;
        } catch (IOException | RuntimeException e) {
            failed = new IOException("an earlier write failed; the file was not finished", e);
            throw e;
        }
    }

    @Override
    public synchronized void write(int one) throws IOException {
        check();
        if (filled < Cobblestone.CHUNK - 1) {
            plain[filled++] = (byte) one;
            size++;
        } else {
            write(new byte[] {(byte) one}, 0, 1);
        }
    }

    private void check() throws IOException {
        if (closed) {
            throw new IOException(FSExceptionMessages.STREAM_IS_CLOSED);
        }
        if (failed != null) {
            throw failed;
        }
    }

    private void seal(byte[] in, int at, int count) throws IOException {
        if (ready + Cobblestone.SEALED_CHUNK > sealed.length) {
            drain();
            if (chunk > 0 && sealed.length == Cobblestone.SEALED_CHUNK) {
                sealed = new byte[Cobblestone.SPAN * Cobblestone.SEALED_CHUNK]; // small files stay small in memory
            }
        }
        try {
            Scratch scratch = Cobblestone.scratch();
            ready += file.seal(scratch, chunk++, in, at, count, sealed, ready);
        } catch (GeneralSecurityException e) {
            throw new IOException("sealing failed", e);
        }
    }

    private void drain() throws IOException {
        out.write(sealed, 0, ready);
        ready = 0;
    }

    @Override
    public synchronized void flush() throws IOException {
        check();
        // Nothing to do: a flush after every line must not cost a system call, and full chunks go out by themselves.
    }

    @Override
    public synchronized void hflush() throws IOException {
        check();
        try {
            drain();
            out.hflush();
        } catch (IOException | RuntimeException e) {
            failed = new IOException("an earlier flush failed; the file was not finished", e);
            throw e;
        }
    }

    @Override
    public void hsync() throws IOException {
        hflush();
    }

    @Override
    public boolean hasCapability(String capability) {
        return ABORTABLE_STREAM.equalsIgnoreCase(capability);
    }

    @Override
    public synchronized void close() throws IOException {
        if (closed) {
            return;
        }
        try {
            check();
            seal(plain, 0, filled);
            drain();
            if (out.hasCapability(HSYNC)) {
                out.hsync();
            }
            out.close();
            closed = true;
            ending.finish(size);
        } catch (IOException | RuntimeException e) {
            discard(e);
            throw e;
        }
    }

    @Override
    public synchronized AbortableResult abort() {
        boolean already = closed;
        IOException cleanup = already ? null : discard(null);
        return new AbortableResult() {
            @Override
            public boolean alreadyClosed() {
                return already;
            }

            @Override
            public IOException anyCleanupException() {
                return cleanup;
            }
        };
    }

    private IOException discard(Exception why) {
        closed = true;
        IOException first = null;
        try {
            out.close();
        } catch (IOException e) {
            first = e;
        }
        try {
            ending.abort();
        } catch (IOException e) {
            first = first == null ? e : first;
        }
        if (why != null && first != null && first != why) {
            why.addSuppressed(first);
        }
        return first;
    }
}
