package io.strongroom.hadoop;

import io.strongroom.hadoop.KeyAgent.Created;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.text.Normalizer;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.BlockLocation;
import org.apache.hadoop.fs.CreateFlag;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FileAlreadyExistsException;
import org.apache.hadoop.fs.FileChecksum;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.FsServerDefaults;
import org.apache.hadoop.fs.FsStatus;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.PathIsNotEmptyDirectoryException;
import org.apache.hadoop.fs.RawLocalFileSystem;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.hadoop.security.AccessControlException;
import org.apache.hadoop.util.Progressable;
import org.apache.hadoop.util.ReflectionUtils;

/**
 * A Hadoop file system whose volumes are sealed: every byte below them is sealed on write and authenticated on read.
 *
 * <p>Trusts the key agent and the configuration; the inner file system, its listings and sizes are the host's claims.
 * Rules:
 *
 * <ol>
 *   <li>A path below a volume's logical folder lives below its physical folder; lengths are plaintext lengths.
 *   <li>What the key agent does not confirm is refused by name: added, dropped, swapped, cut and extended files.
 *   <li>Outside volumes reading is allowed and writing only below {@code fs.sealed.writable}.
 *   <li>Nothing crosses the border of a volume by rename; a sealed file is never changed in place.
 * </ol>
 *
 * <p>It extends {@link FileSystem} and not FilterFileSystem: what is not overridden here is derived from the few methods
 * that are, or unsupported, while FilterFileSystem would pass it to the unsealed file system. Byte statistics are counted
 * by the inner file system.
 */
public class SealedFileSystem extends FileSystem {
    /** Path of the key agent's socket; required. */
    public static final String AGENT = "fs.sealed.agent";
    /** Comma-separated folders outside volumes that may be written. */
    public static final String WRITABLE = "fs.sealed.writable";

    private FileSystem inner;
    private KeyAgent agent;
    private VolumeReader reader;
    private List<Volume> volumes = List.of();
    private final List<Path> writable = new ArrayList<>();
    private Path workingDirectory;

    /** Wraps the file system that the scheme has by default, or {@code fs.sealed.SCHEME.inner}. */
    public SealedFileSystem() {}

    // ---- start ----------------------------------------------------------------------------------------------------

    /** Refuses to start when a way around sealing is left open (rule 2 of the class is void then). */
    @Override
    public void initialize(URI name, Configuration conf) throws IOException {
        super.initialize(name, conf);
        setConf(conf);
        String scheme = name.getScheme();
        requireOurs(conf, "fs." + scheme + ".impl", scheme.equals("file") ? SealedLocalFileSystem.class : SealedFileSystem.class);
        requireOurs(conf, "fs.AbstractFileSystem." + scheme + ".impl", SealedFs.class);
        String socket = conf.getTrimmed(AGENT, "");
        if (socket.isEmpty()) {
            throw new IOException(AGENT + " is not set: without a key agent nothing can be sealed or opened");
        }
        inner = innerOf(scheme, conf);
        inner.initialize(name, conf);
        workingDirectory = inner.getWorkingDirectory();
        for (String folder : conf.getTrimmedStrings(WRITABLE)) {
            writable.add(Volume.qualify(folder));
        }
        agent = KeyAgent.at(socket);
        reader = new VolumeReader(inner, agent);
        volumes = agent.volumes();
        requireApart();
    }

    private static void requireOurs(Configuration conf, String key, Class<?> ours) throws IOException {
        String found = conf.getTrimmed(key, "");
        if (!found.equals(ours.getName())) {
            throw new IOException(
                    key + " must be " + ours.getName() + ", found '" + found + "': half of all files would not be sealed");
        }
    }

    private static FileSystem innerOf(String scheme, Configuration conf) throws IOException {
        if (scheme.equals("file")) {
            return new RawLocalFileSystem();
        }
        Configuration stock = new Configuration(conf);
        stock.unset("fs." + scheme + ".impl");
        Class<? extends FileSystem> type =
                conf.getClass("fs.sealed." + scheme + ".inner", getFileSystemClass(scheme, stock), FileSystem.class);
        return ReflectionUtils.newInstance(type, conf);
    }

    private void requireApart() throws IOException {
        for (Volume a : volumes) {
            for (Volume b : volumes) {
                if (a != b && (Volume.below(a.logical, b.logical) != null || Volume.below(a.physical, b.physical) != null)) {
                    throw new IOException("volumes '" + a.name + "' and '" + b.name + "' overlap");
                }
            }
        }
    }

    // ---- paths ----------------------------------------------------------------------------------------------------

    /** Asks the inner file system, which knows its default port. */
    @Override
    protected void checkPath(Path path) {
        inner.makeQualified(path);
    }

    /** Returns the path with exactly our scheme and authority, as volumes are named. */
    private Path absolute(Path path) {
        checkPath(path);
        return new Path(getUri().getScheme(), getUri().getAuthority(), fixRelativePart(path).toUri().getPath());
    }

    private Spot locate(Path path) throws IOException {
        Path logical = absolute(path);
        if (Volume.escapes(logical)) {
            throw new AccessControlException("cannot use " + logical + ": it leads above the root");
        }
        for (Volume volume : volumes) {
            String relative = Volume.below(volume.logical, logical);
            if (relative != null) {
                return new Spot(volume, relative, logical, Volume.child(volume.physical, relative));
            }
        }
        return new Spot(null, null, logical, logical);
    }

    /** Returns where the path lives, if it may be changed. */
    private Spot locateForWrite(Path path, String verb) throws IOException {
        Spot spot = locate(path);
        String start = "cannot " + verb + " " + spot.logical + ": ";
        if (spot.hidden()) {
            throw new AccessControlException(start + "'" + Volume.HIDDEN + "' belongs to the data set");
        }
        if (spot.sealed()) {
            if (!spot.volume.writable) {
                throw new AccessControlException(start + "volume '" + spot.volume.name + "' has mode ro");
            }
            if (!Normalizer.isNormalized(spot.relative, Normalizer.Form.NFC)) {
                throw new AccessControlException(start + "the name is not in Unicode form NFC");
            }
            return spot;
        }
        for (Volume volume : volumes) {
            if (Volume.below(volume.physical, spot.logical) != null) {
                throw new AccessControlException(start + "sealed files of volume '" + volume.name + "' lie there");
            }
        }
        for (Path folder : writable) {
            if (Volume.below(folder, spot.logical) != null) {
                return spot;
            }
        }
        throw new AccessControlException(start + "it is in no volume and not below " + WRITABLE + "=" + writable);
    }

    /** Returns where the path lives, if it may go away together with all that is below it. */
    private Spot locateForRemoval(Path path, String verb) throws IOException {
        Spot spot = locateForWrite(path, verb);
        for (Volume volume : volumes) {
            if (!spot.sealed() && volume.isBelow(spot.logical)) {
                throw new AccessControlException(
                        "cannot " + verb + " " + spot.logical + ": volume '" + volume.name + "' lies below it");
            }
        }
        return spot;
    }

    private static UnsupportedOperationException writeOnce(String verb, Path path) {
        return new UnsupportedOperationException("cannot " + verb + " " + path + ": sealed files are written once and whole");
    }

    // ---- reading --------------------------------------------------------------------------------------------------

    @Override
    public FSDataInputStream open(Path path, int bufferSize) throws IOException {
        Spot spot = locate(path);
        if (!spot.sealed()) {
            return inner.open(spot.physical, bufferSize);
        }
        return new FSDataInputStream(VolumeReader.settle(spot.volume, () -> reader.openSealed(spot)));
    }

    /** Returns the status; for a sealed file its length is authenticated, not computed. */
    @Override
    public FileStatus getFileStatus(Path path) throws IOException {
        Spot spot = locate(path);
        if (spot.sealed()) {
            FileStatus sealed = VolumeReader.settle(spot.volume, () -> reader.sealedStatus(spot));
            // A new output would otherwise "already exist" for a program that writes to the top of its volume.
            if (spot.relative.isEmpty() && !spot.volume.made && spot.unmade(listStatus(path).length == 0)) {
                throw reader.missing(spot);
            }
            return sealed;
        }
        FileStatus status = reader.statusOrNull(spot.physical);
        if (status == null) {
            if (volumes.stream().anyMatch(volume -> Volume.below(spot.logical, volume.logical) != null)) {
                return new FileStatus(0, true, 0, 0, 0, spot.logical); // the way to a volume
            }
            throw reader.missing(spot);
        }
        return status;
    }

    @Override
    public FileStatus[] listStatus(Path path) throws IOException {
        Spot spot = locate(path);
        if (spot.sealed()) {
            return VolumeReader.settle(spot.volume, () -> reader.listSealed(spot)).toArray(new FileStatus[0]);        }
        List<FileStatus> found = new ArrayList<>();
        boolean onTheWay = false;
        for (Volume volume : volumes) {
            if (spot.logical.equals(volume.logical.getParent())) {
                FileStatus folder = reader.statusOrNull(volume.physical);
                if (folder != null) {
                    found.add(new VolumeReader.Status(folder, 0, volume.logical));
                }
                onTheWay = true;
            }
        }
        if (onTheWay && reader.statusOrNull(spot.physical) == null) {
            return found.toArray(new FileStatus[0]);
        }
        for (FileStatus status : inner.listStatus(spot.physical)) {
            if (volumes.stream().noneMatch(volume -> volume.logical.equals(status.getPath()))) {
                found.add(status);
            }
        }
        return found.toArray(new FileStatus[0]);
    }

    /** Returns the inner file system's blocks, measured in plaintext. */
    @Override
    public BlockLocation[] getFileBlockLocations(FileStatus file, long start, long length) throws IOException {
        if (file == null) {
            return null;
        }
        Spot spot = locate(file.getPath());
        if (!spot.sealed()) {
            return inner.getFileBlockLocations(file, start, length);
        }
        if (start < 0 || length < 0) {
            throw new IllegalArgumentException("Invalid start or len parameter");
        }
        if (file.isDirectory() || file.getLen() <= start) {
            return new BlockLocation[0];
        }
        long end = Math.min(file.getLen(), start + length);
        long from = Cobblestone.offset(start / Cobblestone.CHUNK);
        FileStatus sealed = new FileStatus(Cobblestone.sealedSize(file.getLen()), false, file.getReplication(),
                file.getBlockSize(), file.getModificationTime(), spot.physical);
        BlockLocation[] blocks = inner.getFileBlockLocations(sealed, from, Cobblestone.sealedSize(end) - from);
        for (BlockLocation block : blocks) {
            long first = Cobblestone.plainOffset(block.getOffset(), file.getLen());
            block.setLength(Cobblestone.plainOffset(block.getOffset() + block.getLength(), file.getLen()) - first);
            block.setOffset(first);
        }
        return blocks;
    }

    /** Returns null: a checksum of the host's bytes says nothing about the plaintext. */
    @Override
    public FileChecksum getFileChecksum(Path path, long length) throws IOException {
        Spot spot = locate(path);
        return spot.sealed() ? null : inner.getFileChecksum(spot.physical, length);
    }

    // ---- writing --------------------------------------------------------------------------------------------------

    @Override
    public FSDataOutputStream create(Path path, FsPermission permission, boolean overwrite, int bufferSize,
            short replication, long blockSize, Progressable progress) throws IOException {
        Spot spot = locateForWrite(path, "write");
        if (!spot.sealed()) {
            return inner.create(spot.physical, permission, overwrite, bufferSize, replication, blockSize, progress);
        }
        Volume volume = spot.volume;
        Volume.Writing writing = new Volume.Writing(spot.relative);
        if (volume.open.putIfAbsent(spot.relative, writing) != null) {
            throw new FileAlreadyExistsException(spot.logical + " is already being written");
        }
        try {
            clear(spot, overwrite);
            Created created = agent.create(volume.name, spot.relative);
            Ending ending = new Ending(inner, agent, volume, writing);
            try {
                FSDataOutputStream out = inner.create(
                        spot.physical, permission, overwrite, VolumeReader.INNER_BUFFER, replication, blockSize, progress);
                Cobblestone file = new Cobblestone(created.secret());
                return new FSDataOutputStream(new SealedOutput(out, file, created.prefix(), ending), null);
            } catch (IOException | RuntimeException e) {
                ending.abort();
                throw e;
            }
        } catch (IOException | RuntimeException e) {
            volume.open.remove(spot.relative, writing);
            throw e;
        }
    }

    /** Makes room for a new file, or refuses as {@code create} must. */
    private void clear(Spot spot, boolean overwrite) throws IOException {
        FileStatus old = reader.statusOrNull(spot.physical);
        if (spot.relative.isEmpty() || old != null && (old.isDirectory() || !overwrite)) {
            throw new FileAlreadyExistsException(spot.logical + " already exists");
        }
        if (old != null) {
            VolumeReader.change(spot.volume, () -> take(spot, false)); // the one who writes there now is the caller
        } else if (!overwrite) {
            // Who must not overwrite a file must not replace one that the host took away either.
            VolumeReader.settle(spot.volume, () -> reader.statusOrNull(spot.physical) == null ? reader.missing(spot) : null);
        }
    }

    @Override
    public FSDataOutputStream createNonRecursive(Path path, FsPermission permission, EnumSet<CreateFlag> flags,
            int bufferSize, short replication, long blockSize, Progressable progress) throws IOException {
        Spot spot = locateForWrite(path, "write");
        Path parent = spot.logical.getParent();
        boolean top = spot.sealed() && !spot.relative.contains("/");
        if (parent != null && !top && !getFileStatus(parent).isDirectory()) {
            throw new FileNotFoundException(parent + " is not a directory");
        }
        if (flags.contains(CreateFlag.APPEND)) {
            return append(path, bufferSize, progress);
        }
        boolean overwrite = flags.contains(CreateFlag.OVERWRITE);
        return create(path, permission, overwrite, bufferSize, replication, blockSize, progress);
    }

    @Override
    public boolean mkdirs(Path path, FsPermission permission) throws IOException {
        Spot spot = locate(path);
        if (spot.sealed() && spot.relative.isEmpty()) {
            spot.volume.made |= spot.volume.writable;
        }
        if (reader.isFolder(spot.physical) && !spot.hidden()) {
            return true;
        }
        return inner.mkdirs(locateForWrite(path, "make").physical, permission);
    }

    @Override
    public boolean delete(Path path, boolean recursive) throws IOException {
        Spot spot = locateForRemoval(path, "delete");
        if (!spot.sealed()) {
            return inner.delete(spot.physical, recursive);
        }
        return VolumeReader.change(spot.volume, () -> remove(spot, recursive));
    }

    private boolean remove(Spot spot, boolean recursive) throws IOException {
        if (!spot.relative.isEmpty()) {
            synchronized (spot.volume.open) {
                boolean gone = take(spot, recursive);
                if (gone) {
                    spot.volume.deleted(spot.relative);
                }
                return gone;
            }
        }
        // The volume's own folder stays, and the data set's manifests in it.
        for (FileStatus status : inner.listStatus(spot.physical)) {
            Spot child = spot.child(status.getPath().getName());
            if (!child.hidden()) {
                if (!recursive) {
                    throw new PathIsNotEmptyDirectoryException(spot.logical.toString());
                }
                remove(child, true);
            }
        }
        spot.volume.made = false;
        return true;
    }

    private boolean take(Spot spot, boolean recursive) throws IOException {
        boolean kept = (recursive || !reader.isFolder(spot.physical)) && keep(spot);
        boolean gone = inner.delete(spot.physical, recursive) || kept;
        if (gone) {
            agent.delete(spot.volume.name, spot.relative);
        }
        return gone;
    }

    /** Moves what the data set's last commit names out of the way, so that a run that fails can be undone. */
    private boolean keep(Spot spot) throws IOException {
        Path top = spot.volume.physical;
        Map<String, String> files = agent.keep(spot.volume.name, spot.relative);
        for (Map.Entry<String, String> file : files.entrySet()) {
            Path kept = Volume.child(top, Volume.KEPT + "/" + file.getValue());
            if (!inner.rename(Volume.child(top, file.getKey()), kept)) {
                throw new IOException("cannot keep " + file.getKey() + " of volume '" + spot.volume.name + "' for an undo");
            }
        }
        return !files.isEmpty();
    }

    /** Renames as RawLocalFileSystem does: into an existing folder, onto an existing file or empty folder. */
    @Override
    public boolean rename(Path from, Path to) throws IOException {
        Spot source = locateForRemoval(from, "rename");
        Spot target = locateForRemoval(to, "rename to");
        if (source.volume != target.volume) {
            throw new AccessControlException("cannot rename " + source.logical + " to " + target.logical
                    + ": only inside one volume; copy it instead");
        }
        if (!source.sealed()) {
            return inner.rename(source.physical, target.physical);
        }
        if (source.relative.isEmpty()) {
            throw new AccessControlException("cannot rename " + source.logical + ": it is a volume");
        }
        FileStatus status = VolumeReader.settle(source.volume, () -> {
            FileStatus found = reader.statusOrNull(source.physical);
            if (found == null) {
                throw reader.missing(source);
            }
            return found;
        });
        return VolumeReader.change(source.volume, () -> move(source, status, target));
    }

    private boolean move(Spot source, FileStatus status, Spot target) throws IOException {
        if (source.relative.equals(target.relative)) {
            return true;
        }
        if (Volume.below(source.physical, target.physical) != null) {
            return false;
        }
        Spot goal = target;
        FileStatus old = reader.statusOrNull(goal.physical);
        if (old != null && old.isDirectory()) {
            boolean empty = !goal.relative.isEmpty() && inner.listStatus(goal.physical).length == 0;
            if (status.isDirectory() && empty) {
                inner.delete(goal.physical, false);
                old = null;
            } else {
                goal = target.child(source.logical.getName());
                old = reader.statusOrNull(goal.physical);
            }
        }
        if (old != null && (old.isDirectory() || status.isDirectory())) {
            return false;
        }
        synchronized (source.volume.open) {
            if (old != null) {
                keep(goal);
            }
            if (!inner.rename(source.physical, goal.physical)) {
                return false;
            }
            agent.rename(source.volume.name, source.relative, goal.relative);
            source.volume.renamed(source.relative, goal.relative);
        }
        return true;
    }

    // ---- refused on sealed files ----------------------------------------------------------------------------------

    @Override
    public FSDataOutputStream append(Path path, int bufferSize, Progressable progress) throws IOException {
        Spot spot = locateForWrite(path, "append to");
        if (spot.sealed()) {
            throw writeOnce("append to", spot.logical);
        }
        return inner.append(spot.physical, bufferSize, progress);
    }

    @Override
    public boolean truncate(Path path, long length) throws IOException {
        Spot spot = locateForWrite(path, "truncate");
        if (spot.sealed()) {
            throw writeOnce("truncate", spot.logical);
        }
        return inner.truncate(spot.physical, length);
    }

    @Override
    public void concat(Path target, Path[] sources) throws IOException {
        throw writeOnce("concatenate to", target);
    }

    /** Returns the file of a path outside volumes, for who goes around Hadoop. */
    File plainFile(Path path) {
        try {
            Spot spot = locate(path);
            if (!spot.sealed()) {
                return new File(spot.physical.toUri().getPath());
            }
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        throw new UnsupportedOperationException("cannot give " + path + " as a local file: java.io does not seal");
    }

    // ---- attributes and the rest ----------------------------------------------------------------------------------

    @Override
    public void setPermission(Path path, FsPermission permission) throws IOException {
        inner.setPermission(locateForWrite(path, "change").physical, permission);
    }

    @Override
    public void setOwner(Path path, String user, String group) throws IOException {
        inner.setOwner(locateForWrite(path, "change").physical, user, group);
    }

    @Override
    public void setTimes(Path path, long modified, long accessed) throws IOException {
        inner.setTimes(locateForWrite(path, "change").physical, modified, accessed);
    }

    @Override
    public boolean setReplication(Path path, short replication) throws IOException {
        return inner.setReplication(locateForWrite(path, "change").physical, replication);
    }

    @Override
    public URI getUri() {
        return inner.getUri();
    }

    @Override
    public String getScheme() {
        return getUri().getScheme();
    }

    @Override
    public void setWorkingDirectory(Path path) {
        workingDirectory = absolute(path);
    }

    @Override
    public Path getWorkingDirectory() {
        return workingDirectory;
    }

    @Override
    public Path getHomeDirectory() {
        return inner.getHomeDirectory();
    }

    @Override
    public FsStatus getStatus(Path path) throws IOException {
        return inner.getStatus(path == null ? null : locate(path).physical);
    }

    @Override
    public FsServerDefaults getServerDefaults(Path path) throws IOException {
        return inner.getServerDefaults(locate(path).physical);
    }

    @Override
    public long getDefaultBlockSize(Path path) {
        return inner.getDefaultBlockSize(path);
    }

    @Override
    public short getDefaultReplication(Path path) {
        return inner.getDefaultReplication(path);
    }

    /** Returns the inner file system, so that its delegation tokens are collected. */
    @Override
    public FileSystem[] getChildFileSystems() {
        return new FileSystem[] {inner};
    }

    @Override
    public void close() throws IOException {
        super.close(); // deletes what was marked delete-on-exit, which needs the inner file system
        inner.close();
    }
}
