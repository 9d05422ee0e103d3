package io.strongroom.hadoop;

import java.io.EOFException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.UnixDomainSocketAddress;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Deque;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedDeque;
import java.util.concurrent.Executor;
import java.util.concurrent.Executors;
import org.apache.hadoop.security.AccessControlException;

/**
 * Client of the guest's key agent (formats/key-agent.md); the only way to a file secret or a column key.
 *
 * <p>Trusts the agent: it decides by the job's grant and by the manifest. Safe for many threads; a connection carries one
 * request at a time and goes back to a pool.
 */
final class KeyAgent {
    /** Size of a folder in {@link #list}. */
    static final long FOLDER = -1L;
    /** Size of a file that this run is writing, in {@link #list}. */
    static final long OPEN = -2L;

    private static final int VERSION = 1;
    private static final int MAX_BODY = 1 << 20;
    private static final int MAX_LIST = 64 << 20;
    private static final Map<String, KeyAgent> AGENTS = new ConcurrentHashMap<>();
    private static final Executor CALLERS = Executors.newCachedThreadPool(work -> {
        Thread thread = new Thread(work, "key-agent-client");
        thread.setDaemon(true);
        return thread;
    });

    private enum Operation {
        HELLO(1), OPEN(2), CREATE(3), FINISH(4), RENAME(5), DELETE(6), LIST(7), ABORT(8), WRAP(9), UNWRAP(10), KEEP(11),
        STAT(12);

        final int code;

        Operation(int code) {
            this.code = code;
        }

        /** Whether asking again after a broken connection changes nothing. */
        boolean repeatable() {
            return switch (this) {
                case HELLO, OPEN, LIST, KEEP, STAT, WRAP, UNWRAP -> true;
                default -> false;
            };
        }
    }

    /** The file secret and plaintext size of a file that may be read. */
    record Opened(byte[] secret, long size) {}

    /** The prefix and file secret of a new file. */
    record Created(byte[] prefix, byte[] secret) {}

    private final UnixDomainSocketAddress address;
    private final Deque<SocketChannel> idle = new ConcurrentLinkedDeque<>();
    private List<Volume> volumes;

    private KeyAgent(String socket) {
        address = UnixDomainSocketAddress.of(socket);
    }

    /** Returns the one client of this JVM for the socket. */
    static KeyAgent at(String socket) {
        return AGENTS.computeIfAbsent(socket, KeyAgent::new);
    }

    /** Returns the job's volumes; asked once, so that all file systems of this JVM share their state. */
    synchronized List<Volume> volumes() throws IOException {
        if (volumes == null) {
            volumes = List.copyOf(hello());
        }
        return volumes;
    }

    private List<Volume> hello() throws IOException {
        List<byte[]> fields = call(Operation.HELLO);
        if (fields.isEmpty() || fields.get(0).length != 16 || fields.size() % 4 != 1) {
            throw malformed(Operation.HELLO);
        }
        List<Volume> volumes = new ArrayList<>();
        for (int i = 1; i < fields.size(); i += 4) {
            String mode = text(fields.get(i + 3));
            if (!mode.equals("ro") && !mode.equals("rw")) {
                throw malformed(Operation.HELLO);
            }
            String logical = text(fields.get(i + 1));
            volumes.add(new Volume(text(fields.get(i)), logical, text(fields.get(i + 2)), mode.equals("rw")));
        }
        return volumes;
    }

    Opened open(String volume, String path, byte[] prefix) throws IOException {
        List<byte[]> fields = call(Operation.OPEN, bytes(volume), bytes(path), prefix);
        if (fields.size() != 2 || fields.get(0).length != Cobblestone.SECRET) {
            throw malformed(Operation.OPEN);
        }
        long size = number(Operation.OPEN, fields.get(1));
        if (size < 0) {
            throw malformed(Operation.OPEN);
        }
        return new Opened(fields.get(0), size);
    }

    Created create(String volume, String path) throws IOException {
        List<byte[]> fields = call(Operation.CREATE, bytes(volume), bytes(path));
        if (fields.size() != 2
                || fields.get(0).length != Cobblestone.PREFIX
                || fields.get(1).length != Cobblestone.SECRET) {
            throw malformed(Operation.CREATE);
        }
        return new Created(fields.get(0), fields.get(1));
    }

    void finish(String volume, String path, long size) throws IOException {
        byte[] number = ByteBuffer.allocate(8).putLong(size).array();
        done(Operation.FINISH, call(Operation.FINISH, bytes(volume), bytes(path), number));
    }

    void rename(String volume, String from, String to) throws IOException {
        done(Operation.RENAME, call(Operation.RENAME, bytes(volume), bytes(from), bytes(to)));
    }

    void delete(String volume, String path) throws IOException {
        done(Operation.DELETE, call(Operation.DELETE, bytes(volume), bytes(path)));
    }

    void abort(String volume, String path) throws IOException {
        done(Operation.ABORT, call(Operation.ABORT, bytes(volume), bytes(path)));
    }

    /** Returns name and plaintext size of what must be in the folder; see {@link #FOLDER} and {@link #OPEN}. */
    Map<String, Long> list(String volume, String folder) throws IOException {
        List<byte[]> fields = call(Operation.LIST, bytes(volume), bytes(folder));
        if (fields.size() % 2 != 0) {
            throw malformed(Operation.LIST);
        }
        Map<String, Long> found = new LinkedHashMap<>();
        for (int i = 0; i < fields.size(); i += 2) {
            found.put(text(fields.get(i)), number(Operation.LIST, fields.get(i + 1)));
        }
        return found;
    }

    /** Returns what a listing of its folder says of the path, or null if it knows nothing there. */
    Long stat(String volume, String path) throws IOException {
        List<byte[]> fields = call(Operation.STAT, bytes(volume), bytes(path));
        return fields.isEmpty() ? null : Long.valueOf(number(Operation.STAT, one(Operation.STAT, fields)));
    }

    /** Returns the column key wrapped under the named key, which stays with the agent. */
    byte[] wrap(String name, byte[] key) throws IOException {
        return one(Operation.WRAP, call(Operation.WRAP, bytes(name), key));
    }

    /** Returns the column key in {@code wrapped}. */
    byte[] unwrap(String name, byte[] wrapped) throws IOException {
        return one(Operation.UNWRAP, call(Operation.UNWRAP, bytes(name), wrapped));
    }

    /** Returns, for the committed files at and below the path, where each goes before it is removed or replaced. */
    Map<String, String> keep(String volume, String path) throws IOException {
        List<byte[]> fields = call(Operation.KEEP, bytes(volume), bytes(path));
        if (fields.size() % 2 != 0) {
            throw malformed(Operation.KEEP);
        }
        Map<String, String> found = new LinkedHashMap<>();
        for (int i = 0; i < fields.size(); i += 2) {
            found.put(text(fields.get(i)), text(fields.get(i + 1)));
        }
        return found;
    }

    /** Asks in a thread of our own: an interrupt of the caller would close the channel and leave us not knowing. */
    private List<byte[]> call(Operation operation, byte[]... fields) throws IOException {
        try {
            return CompletableFuture.supplyAsync(() -> {
                try {
                    return callHere(operation, fields);
                } catch (IOException e) {
                    throw new UncheckedIOException(e);
                }
            }, CALLERS).join();
        } catch (CompletionException e) {
            if (e.getCause() instanceof UncheckedIOException unchecked) {
                throw unchecked.getCause();
            }
            throw e;
        }
    }

    private List<byte[]> callHere(Operation operation, byte[]... fields) throws IOException {
        SocketChannel pooled = idle.poll();
        if (pooled != null) {
            try {
                return exchange(pooled, operation, fields);
            } catch (AgentAnswer e) {
                throw e.error;
            } catch (IOException e) {
                if (!operation.repeatable()) {
                    throw new IOException("lost the connection to the key agent at " + address, e);
                }
            }
        }
        try {
            return exchange(connect(), operation, fields);
        } catch (AgentAnswer e) {
            throw e.error;
        } catch (IOException e) {
            throw new IOException("no answer from the key agent at " + address, e);
        }
    }

    private SocketChannel connect() throws IOException {
        return SocketChannel.open(address);
    }

    /** An error that the agent answered, in contrast to one of the connection. */
    private static final class AgentAnswer extends IOException {
        private static final long serialVersionUID = 1L;
        private final IOException error;

        AgentAnswer(IOException error) {
            super(error);
            this.error = error;
        }
    }

    private List<byte[]> exchange(SocketChannel channel, Operation operation, byte[]... fields) throws IOException {
        boolean reusable = false;
        try {
            send(channel, operation, fields);
            ByteBuffer body = receive(channel, operation == Operation.LIST || operation == Operation.KEEP ? MAX_LIST : MAX_BODY);
            int status = body.get() & 0xff;
            List<byte[]> answer = fields(body);
            reusable = status != 3;
            if (status == 0) {
                return answer;
            }
            throw new AgentAnswer(error(status, answer.size() == 1 ? text(answer.get(0)) : "no reason given"));
        } catch (BufferUnderflowException e) {
            throw new IOException("malformed answer from the key agent", e);
        } finally {
            if (reusable) {
                idle.push(channel);
            } else {
                channel.close();
            }
        }
    }

    private static IOException error(int status, String reason) {
        return switch (status) {
            case 1 -> new AccessControlException(reason);
            case 2 -> new SealedIntegrityException(reason);
            case 3 -> new IOException("the key agent refused the request: " + reason);
            case 4 -> new IOException("the key agent is not available: " + reason);
            default -> new IOException("the key agent answered with unknown status " + status);
        };
    }

    private static void send(SocketChannel channel, Operation operation, byte[]... fields) throws IOException {
        int size = 2;
        for (byte[] field : fields) {
            size += 4 + field.length;
        }
        ByteBuffer frame = ByteBuffer.allocate(4 + size).putInt(size).put((byte) VERSION).put((byte) operation.code);
        for (byte[] field : fields) {
            frame.putInt(field.length).put(field);
        }
        frame.flip();
        while (frame.hasRemaining()) {
            channel.write(frame);
        }
    }

    private static ByteBuffer receive(SocketChannel channel, int limit) throws IOException {
        int size = readFully(channel, 4).getInt();
        if (size < 1 || size > limit) {
            throw new IOException("the key agent sent a frame of " + size + " bytes, at most " + limit + " are allowed");
        }
        return readFully(channel, size);
    }

    private static ByteBuffer readFully(SocketChannel channel, int count) throws IOException {
        ByteBuffer buffer = ByteBuffer.allocate(count);
        while (buffer.hasRemaining()) {
            if (channel.read(buffer) < 0) {
                throw new EOFException("the key agent closed the connection");
            }
        }
        return buffer.flip();
    }

    private static List<byte[]> fields(ByteBuffer body) throws IOException {
        List<byte[]> found = new ArrayList<>();
        while (body.hasRemaining()) {
            int size = body.getInt();
            if (size < 0 || size > body.remaining()) {
                throw new IOException("malformed answer from the key agent");
            }
            byte[] field = new byte[size];
            body.get(field);
            found.add(field);
        }
        return found;
    }

    private static void done(Operation operation, List<byte[]> fields) throws IOException {
        if (!fields.isEmpty()) {
            throw malformed(operation);
        }
    }

    private static byte[] one(Operation operation, List<byte[]> fields) throws IOException {
        if (fields.size() != 1) {
            throw malformed(operation);
        }
        return fields.get(0);
    }

    private static long number(Operation operation, byte[] field) throws IOException {
        if (field.length != 8) {
            throw malformed(operation);
        }
        return ByteBuffer.wrap(field).getLong();
    }

    private static IOException malformed(Operation operation) {
        return new IOException("malformed answer from the key agent to " + operation);
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String text(byte[] field) {
        return new String(field, StandardCharsets.UTF_8);
    }
}
