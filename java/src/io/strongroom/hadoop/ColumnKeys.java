package io.strongroom.hadoop;

import java.io.IOException;
import java.util.Base64;
import org.apache.hadoop.conf.Configuration;
import org.apache.parquet.crypto.keytools.KmsClient;

/**
 * Parquet's key management: its master keys are the job's column keys (formats/column-keys.md).
 *
 * <p>Holds no key and decides nothing: the key agent wraps and unwraps, as the owner's release allows. Instance id, URL and
 * access token of Parquet's options have no meaning here.
 */
public final class ColumnKeys implements KmsClient {
    private KeyAgent agent;

    @Override
    public void initialize(Configuration conf, String instance, String url, String token) {
        agent = KeyAgent.at(conf.get(SealedFileSystem.AGENT));
    }

    @Override
    public String wrapKey(byte[] key, String name) {
        try {
            return Base64.getEncoder().encodeToString(agent.wrap(name, key));
        } catch (IOException e) {
            throw ColumnKeys.<RuntimeException>thrown(e);
        }
    }

    @Override
    public byte[] unwrapKey(String wrapped, String name) {
        try {
            return agent.unwrap(name, Base64.getDecoder().decode(wrapped));
        } catch (IllegalArgumentException e) {
            throw ColumnKeys.<RuntimeException>thrown(
                    new SealedIntegrityException("a column key wrapped under " + name + " is not base64"));
        } catch (IOException e) {
            throw ColumnKeys.<RuntimeException>thrown(e);
        }
    }

    /**
     * Throws the refusal as it is, though Parquet's interface names no checked exception: a refusal is an
     * AccessControlException, which fails the job. Of Parquet's own, which are RuntimeExceptions, Spark's
     * {@code ignoreCorruptFiles} would skip the file and lose its rows.
     */
    @SuppressWarnings("unchecked")
    private static <E extends Exception> E thrown(IOException refusal) throws E {
        throw (E) refusal;
    }
}
