package io.strongroom.hadoop;

import io.strongroom.hadoop.Cobblestone.Scratch;
import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.security.GeneralSecurityException;
import org.apache.hadoop.fs.ByteBufferReadable;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSExceptionMessages;
import org.apache.hadoop.fs.FSInputStream;
import org.apache.hadoop.fs.StreamCapabilities;

/**
 * The plaintext of one sealed file; no byte leaves it that was not authenticated.
 *
 * <p>The constructor opens the final chunk, so that truncation, surplus bytes and a lying size show even to a reader that
 * stops early. Positioned reads share nothing with the sequential position and may run in parallel, as Hadoop demands.
 */
final class SealedInput extends FSInputStream implements ByteBufferReadable, StreamCapabilities {
    private final FSDataInputStream in;
    private final Cobblestone file;
    private final String name;
    private final long length;
    private volatile boolean closed;
    private volatile SealedIntegrityException broken;

    private long position;
    /** Opened chunks around {@code position}; the final chunk at first, which footers and small files need. */
    private byte[] window;
    private long windowStart;
    private int windowLength;
    /** Chunks of the next window: doubles while the reader goes on, one again after a jump. */
    private int ahead = 1;

    /**
     * Opens the final chunk of a file that must hold {@code length} bytes.
     *
     * @throws SealedIntegrityException the file ends elsewhere, or its final chunk does not open
     */
    SealedInput(FSDataInputStream in, Cobblestone file, String name, long length) throws IOException {
        this.in = in;
        this.file = file;
        this.name = name;
        this.length = length;
        long last = length / Cobblestone.CHUNK;
        windowStart = last * Cobblestone.CHUNK;
        windowLength = (int) (length - windowStart);
        window = new byte[windowLength];
        Scratch scratch = Cobblestone.scratch();
        int sealed = windowLength + Cobblestone.TAG;
        // One byte more than there must be: a longer file shows without asking for its status.
        int found = readUpTo(Cobblestone.offset(last), scratch.sealed, Math.min(sealed + 1, scratch.sealed.length));
        if (found != sealed) {
            throw new SealedIntegrityException(name, "it does not end after " + length + " bytes: truncated or extended");
        }
        openChunk(scratch, last, 0, windowLength, window, 0);
    }

    long length() {
        return length;
    }

    private int readUpTo(long at, byte[] into, int count) throws IOException {
        int found = 0;
        while (found < count) {
            int n = in.read(at + found, into, found, count - found);
            if (n < 0) {
                break;
            }
            found += n;
        }
        return found;
    }

    private void openChunk(Scratch scratch, long chunk, int at, int plain, byte[] out, int to)
            throws SealedIntegrityException {
        try {
            file.open(scratch, chunk, scratch.sealed, at, plain + Cobblestone.TAG, out, to);
        } catch (GeneralSecurityException e) {
            SealedIntegrityException error = new SealedIntegrityException(name, "chunk " + chunk + " does not open");
            error.initCause(e);
            throw error;
        }
    }

    private int openRange(long from, byte[] out, int to, int count, boolean positioned) throws IOException {
        try {
            return openSpan(from, out, to, count, positioned);
        } catch (SealedIntegrityException e) {
            broken = e;
            throw e;
        }
    }

    /**
     * Opens the bytes from {@code from} on with one read of the inner stream; whole chunks go straight to the caller.
     *
     * @return how many bytes, at least one and at most what a span of chunks covers
     */
    private int openSpan(long from, byte[] out, int to, int count, boolean positioned) throws IOException {
        Scratch scratch = Cobblestone.scratch();
        long first = from / Cobblestone.CHUNK;
        long start = first * Cobblestone.CHUNK;
        long end = Math.min(Math.min(from + count, length), start + (long) Cobblestone.SPAN * Cobblestone.CHUNK);
        int chunks = (int) ((end - start + Cobblestone.CHUNK - 1) / Cobblestone.CHUNK);
        int plain = (int) Math.min(length - start, (long) chunks * Cobblestone.CHUNK);
        readSealed(Cobblestone.offset(first), scratch.sealed, plain + chunks * Cobblestone.TAG, positioned);
        int skip = (int) (from - start);
        int done = 0;
        for (int i = 0; i < chunks; i++) {
            int size = Math.min(Cobblestone.CHUNK, plain - i * Cobblestone.CHUNK);
            int wanted = (int) Math.min(size - skip, end - from - done);
            if (wanted == size) {
                openChunk(scratch, first + i, i * Cobblestone.SEALED_CHUNK, size, out, to + done);
            } else {
                openChunk(scratch, first + i, i * Cobblestone.SEALED_CHUNK, size, scratch.plain, 0);
                System.arraycopy(scratch.plain, skip, out, to + done, wanted);
            }
            done += wanted;
            skip = 0;
        }
        return done;
    }

    private void readSealed(long at, byte[] into, int count, boolean positioned) throws IOException {
        if (closed) {
            throw new IOException(FSExceptionMessages.STREAM_IS_CLOSED);
        }
        try {
            if (positioned) {
                in.readFully(at, into, 0, count);
            } else {
                if (in.getPos() != at) {
                    in.seek(at);
                }
                in.readFully(into, 0, count);
            }
        } catch (EOFException e) {
            throw new SealedIntegrityException(name, "it became shorter while it was read");
        }
    }

    /** Moves the window to {@code position}. */
    private void fill() throws IOException {
        boolean onward = windowStart + windowLength == position;
        ahead = onward ? Math.min(2 * ahead, Cobblestone.SPAN) : 1;
        int room = ahead * Cobblestone.CHUNK;
        if (window.length < room) {
            window = new byte[room];
        }
        windowLength = 0;
        windowStart = position / Cobblestone.CHUNK * Cobblestone.CHUNK;
        windowLength = openRange(windowStart, window, 0, room, false);
    }

    @Override
    public synchronized int read(byte[] out, int to, int count) throws IOException {
        if (count == 0) {
            return 0;
        }
        if (closed) {
            throw new IOException(FSExceptionMessages.STREAM_IS_CLOSED);
        }
        if (position >= length) {
            return -1;
        }
        if (position < windowStart || position >= windowStart + windowLength) {
            if (count >= Cobblestone.CHUNK && position % Cobblestone.CHUNK == 0) {
                int n = openRange(position, out, to, count - count % Cobblestone.CHUNK, false);
                position += n;
                return n;
            }
            fill();
        }
        int at = (int) (position - windowStart);
        int n = Math.min(count, windowLength - at);
        System.arraycopy(window, at, out, to, n);
        position += n;
        return n;
    }

    @Override
    public synchronized int read() throws IOException {
        if (position >= windowStart && position < windowStart + windowLength && !closed) {
            return window[(int) (position++ - windowStart)] & 0xff;
        }
        byte[] one = new byte[1];
        return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
    }

    @Override
    public synchronized int read(ByteBuffer out) throws IOException {
        if (out.hasArray()) {
            int n = read(out.array(), out.arrayOffset() + out.position(), out.remaining());
            if (n > 0) {
                out.position(out.position() + n);
            }
            return n;
        }
        byte[] copy = new byte[Math.min(out.remaining(), Cobblestone.CHUNK)];
        int n = read(copy, 0, copy.length);
        if (n > 0) {
            out.put(copy, 0, n);
        }
        return n;
    }

    @Override
    public int read(long from, byte[] out, int to, int count) throws IOException {
        validatePositionedReadArgs(from, out, to, count);
        if (count == 0) {
            return 0;
        }
        return from >= length ? -1 : openRange(from, out, to, count, true);
    }

    @Override
    public synchronized void seek(long to) throws IOException {
        if (closed) {
            throw new IOException(FSExceptionMessages.STREAM_IS_CLOSED);
        }
        if (to < 0) {
            throw new EOFException(FSExceptionMessages.NEGATIVE_SEEK);
        }
        if (to > length) {
            throw new EOFException(FSExceptionMessages.CANNOT_SEEK_PAST_EOF);
        }
        position = to;
    }

    @Override
    public synchronized long getPos() {
        return position;
    }

    @Override
    public boolean seekToNewSource(long to) {
        return false;
    }

    @Override
    public synchronized long skip(long count) throws IOException {
        long n = Math.max(0, Math.min(count, length - position));
        seek(position + n);
        return n;
    }

    @Override
    public synchronized int available() {
        return (int) Math.min(length - position, Integer.MAX_VALUE);
    }

    @Override
    public boolean hasCapability(String capability) {
        return READBYTEBUFFER.equalsIgnoreCase(capability);
    }

    /**
     * Throws again what a read threw, every time.
     *
     * <p>Parsers wrap the exceptions of their input in their own; Spark's multi-line CSV then takes an altered file for a
     * malformed one, and {@code ignoreCorruptFiles} drops its rest in silence. But Spark closes the stream itself when the
     * task ends, and what is thrown there fails the task.
     */
    @Override
    public void close() throws IOException {
        closed = true;
        in.close();
        if (broken != null) {
            throw new SealedIntegrityException(broken);
        }
    }
}
