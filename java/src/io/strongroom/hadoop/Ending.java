package io.strongroom.hadoop;

import java.io.IOException;
import org.apache.hadoop.fs.FileSystem;

/** Tells the agent how a write ended; a file that was deleted meanwhile ends in silence, as on any file system. */
final class Ending implements SealedOutput.Ending {
    private final FileSystem inner;
    private final KeyAgent agent;
    private final Volume volume;
    private final Volume.Writing writing;

    Ending(FileSystem inner, KeyAgent agent, Volume volume, Volume.Writing writing) {
        this.inner = inner;
        this.agent = agent;
        this.volume = volume;
        this.writing = writing;
    }

    @Override
    public void finish(long plainSize) throws IOException {
        synchronized (volume.open) {
            if (!writing.gone) {
                agent.finish(volume.name, writing.relative, plainSize);
                volume.open.remove(writing.relative, writing);
            }
        }
    }

    @Override
    public void abort() throws IOException {
        synchronized (volume.open) {
            if (!writing.gone) {
                volume.open.remove(writing.relative, writing);
                inner.delete(Volume.child(volume.physical, writing.relative), false);
                agent.abort(volume.name, writing.relative);
            }
        }
    }
}
