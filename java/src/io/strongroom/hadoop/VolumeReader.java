package io.strongroom.hadoop;

import io.strongroom.hadoop.KeyAgent.Opened;
import java.io.EOFException;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InterruptedIOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.locks.Lock;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.permission.FsPermission;

/**
 * What lies in volumes, as far as file system and key agent agree; refuses by name where they do not.
 *
 * <p>Trusts the agent; what the inner file system lists, and the sizes it gives, are the host's claims
 * (formats/data-set.md §4).
 */
final class VolumeReader {
    private static final int FIRST_PAUSE_MS = 5;
    private static final int LAST_PAUSE_MS = 320;
    /** The inner stream is read in spans; a small buffer keeps it out of the way. */
    static final int INNER_BUFFER = 4096;

    private final FileSystem inner;
    private final KeyAgent agent;

    VolumeReader(FileSystem inner, KeyAgent agent) {
        this.inner = inner;
        this.agent = agent;
    }

    interface Attempt<T> {
        T run() throws IOException;
    }

    /**
     * Runs what compares the file system with the agent, again if they disagree.
     *
     * <p>A rename or delete reaches the agent after the file system, so that they disagree for a moment. A second attempt
     * waits for the changes of this JVM; further ones give other processes about half a second.
     */
    static <T> T settle(Volume volume, Attempt<T> attempt) throws IOException {
        try {
            return attempt.run();
        } catch (SealedIntegrityException first) {
            // Look again below.
        }
        Lock alone = volume.changes.writeLock();
        for (int pause = FIRST_PAUSE_MS; ; pause *= 2) {
            alone.lock();
            try {
                return attempt.run();
            } catch (SealedIntegrityException e) {
                if (pause > LAST_PAUSE_MS) {
                    throw e;
                }
            } finally {
                alone.unlock();
            }
            try {
                Thread.sleep(pause);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
                throw new InterruptedIOException("interrupted while checking volume " + volume.name);
            }
        }
    }

    static <T> T change(Volume volume, Attempt<T> attempt) throws IOException {
        Lock shared = volume.changes.readLock();
        shared.lock();
        try {
            return attempt.run();
        } finally {
            shared.unlock();
        }
    }

    /** Returns what the agent says about the path: a size, FOLDER, OPEN, or null if it knows nothing there. */
    private Long expected(Spot spot) throws IOException {
        if (spot.relative.isEmpty()) {
            return KeyAgent.FOLDER;
        }
        return agent.stat(spot.volume.name, spot.relative);
    }

    FileNotFoundException missing(Spot spot) throws IOException {
        if (spot.sealed() && !spot.hidden() && !spot.relative.isEmpty()) {
            Long size = expected(spot);
            if (size != null && size != KeyAgent.OPEN) {
                throw new SealedIntegrityException(spot.logical, "dropped: the data set has it, the folder does not");
            }
        }
        return new FileNotFoundException("File " + spot.logical + " does not exist");
    }

    SealedInput openSealed(Spot spot) throws IOException {
        if (spot.hidden()) {
            throw new FileNotFoundException("File " + spot.logical + " does not exist");
        }
        FSDataInputStream in;
        try {
            in = inner.open(spot.physical, INNER_BUFFER);
        } catch (FileNotFoundException e) {
            if (isFolder(spot.physical)) {
                throw new FileNotFoundException(spot.logical + " is a directory");
            }
            throw missing(spot);
        }
        try {
            byte[] prefix = new byte[Cobblestone.PREFIX];
            readPrefix(in, prefix, spot);
            Opened opened = agent.open(spot.volume.name, spot.relative, prefix);
            return new SealedInput(in, new Cobblestone(opened.secret()), spot.logical.toString(), opened.size());
        } catch (IOException | RuntimeException e) {
            in.close();
            if (e instanceof SealedIntegrityException) {
                Long size = expected(spot);
                if (size != null && size == KeyAgent.OPEN) {
                    throw new BeingWritten(spot.logical);
                }
            }
            throw e;
        }
    }

    /** The file is open for writing in this run: not a fault, but not readable. */
    private static final class BeingWritten extends IOException {
        private static final long serialVersionUID = 1L;

        BeingWritten(Path path) {
            super(path + " is still being written; a sealed file is readable once it is closed");
        }
    }

    private static void readPrefix(FSDataInputStream in, byte[] prefix, Spot spot) throws IOException {
        try {
            in.readFully(0, prefix);
        } catch (EOFException e) {
            throw new SealedIntegrityException(spot.logical, "truncated: shorter than the prefix of a sealed file");
        }
        if (!Cobblestone.hasMagic(prefix)) {
            throw new SealedIntegrityException(spot.logical, "not a sealed file: it does not begin with STRGROOM");
        }
    }

    FileStatus statusOrNull(Path physical) throws IOException {
        try {
            return inner.getFileStatus(physical);
        } catch (FileNotFoundException e) {
            return null;
        }
    }

    boolean isFolder(Path physical) throws IOException {
        FileStatus status = statusOrNull(physical);
        return status != null && status.isDirectory();
    }

    FileStatus sealedStatus(Spot spot) throws IOException {
        FileStatus status = spot.hidden() ? null : statusOrNull(spot.physical);
        if (status == null) {
            throw missing(spot);
        }
        if (status.isDirectory() || spot.volume.open.containsKey(spot.relative)) {
            return new Status(status, 0, spot.logical);
        }
        try (SealedInput in = openSealed(spot)) {
            return new Status(status, in.length(), spot.logical);
        } catch (BeingWritten e) {
            return new Status(status, 0, spot.logical);
        }
    }

    /** A status with our path and length; the rest is asked when needed, since owners may cost a process. */
    static final class Status extends FileStatus {
        private static final long serialVersionUID = 1L;
        private final FileStatus inner;

        Status(FileStatus inner, long length, Path logical) {
            super(length, inner.isDirectory(), inner.getReplication(), inner.getBlockSize(), inner.getModificationTime(),
                    inner.getAccessTime(), null, null, null, logical);
            this.inner = inner;
        }

        @Override
        public FsPermission getPermission() {
            return inner.getPermission();
        }

        @Override
        public String getOwner() {
            return inner.getOwner();
        }

        @Override
        public String getGroup() {
            return inner.getGroup();
        }
    }

    List<FileStatus> listSealed(Spot folder) throws IOException {
        FileStatus top = folder.hidden() ? null : statusOrNull(folder.physical);
        if (top == null) {
            throw missing(folder);
        }
        if (!top.isDirectory()) {
            return List.of(sealedStatus(folder));
        }
        Map<String, Long> expected = agent.list(folder.volume.name, folder.relative);
        List<FileStatus> found = new ArrayList<>();
        for (FileStatus status : inner.listStatus(folder.physical)) {
            Spot spot = folder.child(status.getPath().getName());
            if (!spot.hidden()) {
                found.add(confirmed(spot, status, expected.remove(status.getPath().getName())));
            }
        }
        for (Map.Entry<String, Long> rest : expected.entrySet()) {
            if (rest.getValue() != KeyAgent.OPEN) {
                Path path = folder.child(rest.getKey()).logical;
                throw new SealedIntegrityException(path, "dropped: the data set has it, the folder does not");
            }
        }
        return found;
    }

    /** Returns the status of a listed file if the agent expects just that; {@code size} is what the agent said. */
    private FileStatus confirmed(Spot spot, FileStatus status, Long size) throws IOException {
        if (status.isDirectory()) {
            // A folder that the agent does not know has no files, or its files are found when it is listed.
            if (size != null && size != KeyAgent.FOLDER) {
                throw new SealedIntegrityException(spot.logical, "swapped: a folder lies where the data set has a file");
            }
            return new Status(status, 0, spot.logical);
        }
        if (size == null || size == KeyAgent.FOLDER) {
            throw new SealedIntegrityException(spot.logical, "added: the data set has no such file");
        }
        if (size == KeyAgent.OPEN) {
            return new Status(status, 0, spot.logical);
        }
        long claimed = Cobblestone.plainSize(status.getLen());
        if (claimed != size) {
            throw new SealedIntegrityException(
                    spot.logical, "truncated or extended: the data set has " + size + " bytes, the file "
                            + (claimed < 0 ? "no possible size" : claimed));
        }
        if (claimed == 0) {
            openSealed(spot).close(); // Spark skips empty files: nobody else would look at this one
        }
        return new Status(status, size, spot.logical);
    }
}
