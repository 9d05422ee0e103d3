package io.strongroom.hadoop;

import java.io.IOException;
import java.net.URI;
import java.net.URISyntaxException;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.DelegateToFileSystem;

/** Sealed volumes for Hadoop's FileContext API; without it streaming checkpoints would be written in plaintext. */
public final class SealedFs extends DelegateToFileSystem {
    /** The constructor that Hadoop calls. */
    public SealedFs(URI uri, Configuration conf) throws IOException, URISyntaxException {
        super(uri, uri.getScheme().equals("file") ? new SealedLocalFileSystem() : new SealedFileSystem(), conf,
                uri.getScheme(), false);
    }
}
