package io.strongroom.hadoop;

import java.security.GeneralSecurityException;
import java.util.Arrays;
import javax.crypto.Cipher;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.SecretKeySpec;

/**
 * The chunks of one sealed file: sizes, and sealing and opening under its file secret (formats/sealed-file.md §3).
 *
 * <p>Trusts the file secret, which the key agent gives. Immutable and safe for many threads: ciphers and buffers belong
 * to the thread, not to the file, so that thousands of open files cost no memory.
 */
final class Cobblestone {
    static final int PREFIX = 184;
    static final int CHUNK = 16_384;
    static final int TAG = 16;
    static final int SEALED_CHUNK = CHUNK + TAG;
    static final int SECRET = 44;
    /** Chunks that are read or written at once: 256 KiB. */
    static final int SPAN = 16;

    private static final byte[] MAGIC = {'S', 'T', 'R', 'G', 'R', 'O', 'O', 'M'};
    private static final ThreadLocal<Scratch> SCRATCH = ThreadLocal.withInitial(Scratch::new);

    private final SecretKeySpec key;
    private final byte[] baseNonce;

    /** Takes the 44 bytes of the file secret and overwrites the array with zeros. */
    Cobblestone(byte[] secret) {
        if (secret.length != SECRET) {
            throw new IllegalArgumentException("a file secret has 44 bytes, got " + secret.length);
        }
        key = new SecretKeySpec(secret, 0, 32, "AES");
        baseNonce = Arrays.copyOfRange(secret, 32, SECRET);
        Arrays.fill(secret, (byte) 0);
    }

    /** What one thread reuses from chunk to chunk and from file to file. */
    static final class Scratch {
        final Cipher cipher;
        final byte[] nonce = new byte[12];
        final byte[] sealed = new byte[SPAN * SEALED_CHUNK];
        final byte[] plain = new byte[CHUNK];

        private Scratch() {
            try {
                cipher = Cipher.getInstance("AES/GCM/NoPadding");
            } catch (GeneralSecurityException e) {
                throw new IllegalStateException("this JVM has no AES-GCM", e);
            }
        }
    }

    static Scratch scratch() {
        return SCRATCH.get();
    }

    static boolean hasMagic(byte[] prefix) {
        return Arrays.equals(prefix, 0, MAGIC.length, MAGIC, 0, MAGIC.length);
    }

    /** Returns the size of the sealed file that holds {@code plain} bytes. */
    static long sealedSize(long plain) {
        return PREFIX + plain + TAG * (plain / CHUNK + 1);
    }

    /** Returns the plaintext size that a sealed file of this size claims, or -1 if no sealed file has this size. */
    static long plainSize(long sealed) {
        long body = sealed - PREFIX;
        long rest = body % SEALED_CHUNK;
        return body < TAG || rest < TAG ? -1 : body / SEALED_CHUNK * CHUNK + rest - TAG;
    }

    /** Returns the offset in the sealed file at which a chunk starts. */
    static long offset(long chunk) {
        return PREFIX + chunk * SEALED_CHUNK;
    }

    /** Writes the sealed chunk to {@code out}, which must be another array than {@code in}; returns its size. */
    int seal(Scratch scratch, long chunk, byte[] in, int at, int length, byte[] out, int to)
            throws GeneralSecurityException {
        return run(scratch, Cipher.ENCRYPT_MODE, chunk, in, at, length, out, to);
    }

    /** Writes the opened chunk to {@code out}, which must be another array than {@code in}; returns its size. */
    int open(Scratch scratch, long chunk, byte[] in, int at, int length, byte[] out, int to)
            throws GeneralSecurityException {
        return run(scratch, Cipher.DECRYPT_MODE, chunk, in, at, length, out, to);
    }

    private int run(Scratch scratch, int mode, long chunk, byte[] in, int at, int length, byte[] out, int to)
            throws GeneralSecurityException {
        byte[] nonce = scratch.nonce;
        System.arraycopy(baseNonce, 0, nonce, 0, nonce.length);
        long index = chunk;
        for (int i = nonce.length - 1; index != 0; i--, index >>>= 8) {
            nonce[i] ^= (byte) index;
        }
        scratch.cipher.init(mode, key, new GCMParameterSpec(8 * TAG, nonce));
        return scratch.cipher.doFinal(in, at, length, out, to);
    }

    /** Returns which plaintext offset the offset in a sealed file of so much plaintext stands for. */
    static long plainOffset(long sealed, long length) {
        long body = Math.max(0, sealed - PREFIX);
        long within = Math.min(body % SEALED_CHUNK, CHUNK);
        return Math.min(length, body / SEALED_CHUNK * CHUNK + within);
    }
}
