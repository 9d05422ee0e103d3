package io.strongroom.hadoop;

import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.util.EnumSet;
import java.util.List;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.CreateFlag;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.LocalFileSystem;
import org.apache.hadoop.fs.LocatedFileStatus;
import org.apache.hadoop.fs.Options.ChecksumOpt;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RemoteIterator;
import org.apache.hadoop.fs.permission.AclEntry;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.hadoop.util.Progressable;

/**
 * {@link SealedFileSystem} in the shape that {@code file:} must have: Hadoop casts it to LocalFileSystem.
 *
 * <p>Everything goes to the sealed file system; ChecksumFileSystem's {@code .crc} files, hidden names and copies are
 * switched off, since the tags of the chunks do their work. What LocalFileSystem itself passes on needs no method here.
 */
public final class SealedLocalFileSystem extends LocalFileSystem {
    /** The constructor that Hadoop calls. */
    public SealedLocalFileSystem() {
        super(new SealedFileSystem());
    }

    @Override
    public void initialize(URI name, Configuration conf) throws IOException {
        fs.initialize(name, conf);
        setConf(conf);
    }

    /** Returns the file of a path outside volumes; inside one, java.io would write plaintext among sealed files. */
    @Override
    public File pathToFile(Path path) {
        return ((SealedFileSystem) fs).plainFile(path);
    }

    @Override
    public FSDataInputStream open(Path path, int bufferSize) throws IOException {
        return fs.open(path, bufferSize);
    }

    @Override
    public FSDataOutputStream append(Path path, int bufferSize, Progressable progress) throws IOException {
        return fs.append(path, bufferSize, progress);
    }

    @Override
    public boolean truncate(Path path, long length) throws IOException {
        return fs.truncate(path, length);
    }

    @Override
    public void concat(Path target, Path[] sources) throws IOException {
        fs.concat(target, sources);
    }

    @Override
    public FSDataOutputStream create(Path path, FsPermission permission, boolean overwrite, int bufferSize,
            short replication, long blockSize, Progressable progress) throws IOException {
        return fs.create(path, permission, overwrite, bufferSize, replication, blockSize, progress);
    }

    @Override
    public FSDataOutputStream create(Path path, FsPermission permission, EnumSet<CreateFlag> flags, int bufferSize,
            short replication, long blockSize, Progressable progress, ChecksumOpt checksum) throws IOException {
        return fs.create(path, permission, flags, bufferSize, replication, blockSize, progress, checksum);
    }

    @Override
    @SuppressWarnings("deprecation") // Hadoop deprecates it in favour of nothing that commits do not use
    public FSDataOutputStream createNonRecursive(Path path, FsPermission permission, boolean overwrite, int bufferSize,
            short replication, long blockSize, Progressable progress) throws IOException {
        return fs.createNonRecursive(path, permission, overwrite, bufferSize, replication, blockSize, progress);
    }

    @Override
    @SuppressWarnings("deprecation") // as above
    public FSDataOutputStream createNonRecursive(Path path, FsPermission permission, EnumSet<CreateFlag> flags,
            int bufferSize, short replication, long blockSize, Progressable progress) throws IOException {
        return fs.createNonRecursive(path, permission, flags, bufferSize, replication, blockSize, progress);
    }

    @Override
    public boolean rename(Path from, Path to) throws IOException {
        return fs.rename(from, to);
    }

    @Override
    public boolean delete(Path path, boolean recursive) throws IOException {
        return fs.delete(path, recursive);
    }

    @Override
    public FileStatus[] listStatus(Path path) throws IOException {
        return fs.listStatus(path);
    }

    @Override
    public RemoteIterator<FileStatus> listStatusIterator(Path path) throws IOException {
        return fs.listStatusIterator(path);
    }

    @Override
    public RemoteIterator<LocatedFileStatus> listLocatedStatus(Path path) throws IOException {
        return fs.listLocatedStatus(path);
    }

    @Override
    public void copyToLocalFile(Path from, Path to, boolean copyChecksums) throws IOException {
        fs.copyToLocalFile(false, from, to);
    }

    @Override
    public void setPermission(Path path, FsPermission permission) throws IOException {
        fs.setPermission(path, permission);
    }

    @Override
    public void setOwner(Path path, String user, String group) throws IOException {
        fs.setOwner(path, user, group);
    }

    @Override
    public boolean setReplication(Path path, short replication) throws IOException {
        return fs.setReplication(path, replication);
    }

    @Override
    public void setAcl(Path path, List<AclEntry> entries) throws IOException {
        fs.setAcl(path, entries);
    }

    @Override
    public void modifyAclEntries(Path path, List<AclEntry> entries) throws IOException {
        fs.modifyAclEntries(path, entries);
    }

    @Override
    public void removeAcl(Path path) throws IOException {
        fs.removeAcl(path);
    }

    @Override
    public void removeAclEntries(Path path, List<AclEntry> entries) throws IOException {
        fs.removeAclEntries(path, entries);
    }

    @Override
    public void removeDefaultAcl(Path path) throws IOException {
        fs.removeDefaultAcl(path);
    }

    @Override
    public void setVerifyChecksum(boolean verify) {
        // Tags are always verified.
    }

    @Override
    public boolean getVerifyChecksum() {
        return false;
    }

    @Override
    public void setWriteChecksum(boolean write) {
        // No .crc files.
    }

    /** Returns false: LocalFileSystem would move the file to a folder of bad files, out of its volume. */
    @Override
    public boolean reportChecksumFailure(Path path, FSDataInputStream in, long at, FSDataInputStream sums, long sumsAt) {
        return false;
    }

    @Override
    public boolean supportsSymlinks() {
        return fs.supportsSymlinks();
    }

    @Override
    public FileSystem getRaw() {
        return fs;
    }
}
