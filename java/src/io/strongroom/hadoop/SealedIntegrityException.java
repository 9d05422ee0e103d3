package io.strongroom.hadoop;

import org.apache.hadoop.security.AccessControlException;

/**
 * A sealed file is not what it must be; the message names it.
 *
 * <p>It is an {@link AccessControlException} because Spark's {@code ignoreCorruptFiles} swallows every other
 * {@code IOException}, and {@code ignoreMissingFiles} every {@code FileNotFoundException}.
 */
public final class SealedIntegrityException extends AccessControlException {
    private static final long serialVersionUID = 1L;

    SealedIntegrityException(Object file, String what) {
        super("sealed file " + file + ": " + what);
    }

    /** Repeats another one, with a stack of its own. */
    SealedIntegrityException(SealedIntegrityException cause) {
        super(cause.getMessage());
        initCause(cause);
    }

    SealedIntegrityException(String sentence) {
        super(sentence);
    }
}
