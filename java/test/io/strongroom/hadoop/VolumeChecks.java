package io.strongroom.hadoop;

import java.io.FileNotFoundException;
import java.io.IOException;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.BlockLocation;
import org.apache.hadoop.fs.CreateFlag;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FileAlreadyExistsException;
import org.apache.hadoop.fs.FileContext;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.LocatedFileStatus;
import org.apache.hadoop.fs.Options;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RemoteIterator;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.hadoop.security.AccessControlException;

/** How a volume behaves through Hadoop's two interfaces, against the fake agent; the first failure ends the program. */
final class VolumeChecks {
    private final Configuration conf = new Configuration(false);
    private final Path top;
    private final Path readOnly;
    private final Path outside;
    private final Path physical;
    private final FileSystem fs;

    private VolumeChecks(String[] arguments) throws IOException {
        conf.set("fs.file.impl", SealedLocalFileSystem.class.getName());
        conf.set("fs.AbstractFileSystem.file.impl", SealedFs.class.getName());
        conf.set(SealedFileSystem.AGENT, arguments[0]);
        top = new Path(arguments[1]);
        readOnly = new Path(arguments[2]);
        outside = new Path(arguments[3]);
        physical = new Path(arguments[4]);
        conf.set(SealedFileSystem.WRITABLE, arguments[3]);
        fs = FileSystem.get(URI.create("file:///"), conf);
    }

    /** Takes socket, logical folder (rw), logical folder (ro), writable folder, physical folder of the first. */
    static void main(String[] arguments) throws Exception {
        VolumeChecks checks = new VolumeChecks(arguments);
        checks.start(arguments);
        checks.files();
        checks.listings();
        checks.renames();
        checks.deletes();
        checks.refusals();
        checks.fileContext();
        checks.aborts();
        checks.threads();
        System.out.println("ok");
    }

    private static void that(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    private static void refused(Class<? extends Exception> type, String part, Callable<?> action) {
        try {
            action.call();
        } catch (Exception e) {
            that(type.isInstance(e), "expected " + type + ", got " + e);
            that(String.valueOf(e.getMessage()).contains(part), "'" + part + "' is not in: " + e.getMessage());
            return;
        }
        throw new AssertionError("not refused: " + part);
    }

    private void put(Path path, String text) throws IOException {
        try (FSDataOutputStream out = fs.create(path)) {
            out.write(text.getBytes(StandardCharsets.UTF_8));
        }
    }

    private String get(Path path) throws IOException {
        try (var in = fs.open(path)) {
            return new String(in.readAllBytes(), StandardCharsets.UTF_8);
        }
    }

    private String names(Path folder) throws IOException {
        return Arrays.stream(fs.listStatus(folder)).map(s -> s.getPath().getName() + (s.isDirectory() ? "/" : ""))
                .sorted().collect(Collectors.joining(" "));
    }

    private void start(String[] arguments) throws IOException {
        that(FileSystem.getLocal(conf) instanceof SealedLocalFileSystem, "getLocal");
        for (String key : new String[] {"fs.file.impl", "fs.AbstractFileSystem.file.impl", SealedFileSystem.AGENT}) {
            Configuration half = new Configuration(conf);
            half.unset(key);
            refused(IOException.class, key, () -> {
                new SealedLocalFileSystem().initialize(URI.create("file:///"), half);
                return null;
            });
        }
    }

    private void files() throws IOException {
        Path a = new Path(top, "d/a.txt");
        put(a, "hello");
        that(get(a).equals("hello"), "read back");
        FileStatus status = fs.getFileStatus(a);
        that(status.getLen() == 5 && status.isFile() && status.getPath().equals(fs.makeQualified(a)), "status " + status);
        that(status.getOwner() != null && status.getPermission() != null, "lazy attributes");
        that(fs.getFileLinkStatus(a).getLen() == 5, "link status");
        that(fs.resolvePath(a).equals(fs.makeQualified(a)), "resolvePath");
        that(fs.getFileChecksum(a) == null, "checksum");
        that(fs.getContentSummary(top).getLength() == 5, "summary");
        that(fs.exists(a) && !fs.exists(new Path(top, "d/none")), "exists");
        that(fs.getUsed(top) == 5, "used");
        put(a, "again!");
        that(get(a).equals("again!"), "overwrite");
        refused(FileAlreadyExistsException.class, "a.txt", () -> fs.create(a, false));
        refused(FileAlreadyExistsException.class, "/d", () -> fs.create(a.getParent(), true));
        refused(FileNotFoundException.class, "d", () -> fs.open(a.getParent()));
        refused(FileNotFoundException.class, "none", () -> fs.open(new Path(top, "none")));
        put(new Path(top, "x y%20=é"), "odd");
        that(get(new Path(top, "x y%20=é")).equals("odd"), "odd name");
        fs.delete(new Path(top, "x y%20=é"), false);
        BlockLocation[] blocks = fs.getFileBlockLocations(status, 0, 5);
        that(blocks.length == 1 && blocks[0].getOffset() == 0 && blocks[0].getLength() == 5, "blocks");
        fs.setWorkingDirectory(top);
        that(get(new Path("d/a.txt")).equals("again!"), "relative");
        put(new Path(outside, "plain"), "plain");
        fs.copyFromLocalFile(new Path(outside, "plain"), new Path(top, "copy"));
        that(get(new Path(top, "copy")).equals("plain"), "copyFromLocalFile");
        fs.copyToLocalFile(new Path(top, "copy"), new Path(outside, "back"));
        that(get(new Path(outside, "back")).equals("plain"), "copyToLocalFile");
        try (FSDataOutputStream out = fs.createFile(new Path(top, "built")).recursive().overwrite(true).build()) {
            out.write(1);
        }
        that(fs.getFileStatus(new Path(top, "built")).getLen() == 1, "createFile");
        fs.createNewFile(new Path(top, "empty"));
        that(fs.getFileStatus(new Path(top, "empty")).getLen() == 0, "empty");
    }

    private void listings() throws IOException {
        that(names(top).equals("built copy d/ empty"), names(top));
        RemoteIterator<LocatedFileStatus> files = fs.listFiles(top, true);
        int count = 0;
        while (files.hasNext()) {
            LocatedFileStatus file = files.next();
            that(file.getPath().toUri().getPath().startsWith(top.toUri().getPath()), "path " + file);
            count++;
        }
        that(count == 4, "listFiles " + count);
        that(fs.globStatus(new Path(top.getParent(), "*/d/*.txt")).length == 1, "glob through the parent");
        that(names(top.getParent()).contains(top.getName() + "/"), "volume in its parent");
        that(fs.listStatusIterator(top).hasNext(), "iterator");
        that(!fs.exists(new Path(top, ".dataset")) && !fs.exists(new Path(top, ".dataset/id.json")), "hidden");
        Path open = new Path(top, "writing");
        try (FSDataOutputStream out = fs.create(open)) {
            out.write(new byte[100_000]);
            that(fs.getFileStatus(open).getLen() == 0, "open status");
            that(names(top).contains("writing"), "open listed");
            refused(IOException.class, "still being written", () -> fs.open(open));
            refused(FileAlreadyExistsException.class, "being written", () -> fs.create(open, true));
        }
        that(fs.getFileStatus(open).getLen() == 100_000, "closed status");
        fs.delete(open, false);
    }

    private void renames() throws IOException {
        put(new Path(top, "r/one"), "1");
        put(new Path(top, "r/two"), "2");
        that(fs.rename(new Path(top, "r/one"), new Path(top, "r/uno")), "file");
        that(fs.rename(new Path(top, "r/uno"), new Path(top, "d")), "file into folder");
        that(get(new Path(top, "d/uno")).equals("1"), "moved inside");
        that(fs.rename(new Path(top, "r"), new Path(top, "d")), "folder into folder");
        that(get(new Path(top, "d/r/two")).equals("2"), "folder moved inside");
        fs.mkdirs(new Path(top, "bare"));
        that(fs.rename(new Path(top, "d/r"), new Path(top, "bare")), "folder onto empty folder");
        that(get(new Path(top, "bare/two")).equals("2"), "replaced the empty folder");
        that(fs.rename(new Path(top, "d/uno"), new Path(top, "bare/two")), "file onto file");
        that(get(new Path(top, "bare/two")).equals("1"), "replaced the file");
        that(!fs.rename(new Path(top, "bare"), new Path(top, "bare/below")), "below itself");
        that(!fs.rename(new Path(top, "bare"), new Path(top, "d/a.txt")), "folder onto file");
        refused(FileNotFoundException.class, "gone", () -> fs.rename(new Path(top, "gone"), new Path(top, "x")));
        fs.mkdirs(new Path(top, "hollow/in"));
        that(fs.rename(new Path(top, "hollow"), new Path(top, "hollow2")), "folder without files");
        for (Path to : new Path[] {new Path(outside, "leak"), new Path("/nowhere/leak")}) {
            refused(AccessControlException.class, "leak", () -> fs.rename(new Path(top, "copy"), to));
        }
        refused(AccessControlException.class, "inside one volume",
                () -> fs.rename(new Path(outside, "plain"), new Path(top, "plain")));
        refused(AccessControlException.class, "mode ro", () -> fs.rename(new Path(top, "copy"), new Path(readOnly, "x")));
        names(new Path(top, "bare"));
    }

    private void deletes() throws IOException {
        that(fs.delete(new Path(top, "bare"), true) && !fs.exists(new Path(top, "bare")), "folder");
        that(!fs.delete(new Path(top, "bare"), true), "twice");
        refused(IOException.class, "d", () -> fs.delete(new Path(top, "d"), false));
        refused(IOException.class, "", () -> fs.delete(top, false));
        that(fs.delete(top, true), "the volume's content");
        that(names(top).isEmpty(), names(top));
        FileSystem raw = new org.apache.hadoop.fs.RawLocalFileSystem();
        raw.initialize(URI.create("file:///"), conf);
        that(raw.exists(new Path(physical, ".dataset/id.json")), "the data set's folder stays");
    }

    @SuppressWarnings("deprecation") // createNonRecursive
    private void refusals() throws IOException {
        Path a = new Path(top, "a");
        put(a, "a");
        refused(UnsupportedOperationException.class, "written once", () -> fs.append(a));
        refused(UnsupportedOperationException.class, "written once", () -> fs.appendFile(a).build());
        refused(UnsupportedOperationException.class, "written once", () -> fs.truncate(a, 0));
        refused(UnsupportedOperationException.class, "written once", () -> run(() -> fs.concat(a, new Path[] {a})));
        refused(UnsupportedOperationException.class, "createMultipartUploader", () -> fs.createMultipartUploader(top));
        refused(UnsupportedOperationException.class, "symlinks", () -> run(() -> fs.createSymlink(a, new Path(top, "l"), false)));
        refused(UnsupportedOperationException.class, "createSnapshot", () -> fs.createSnapshot(top, "s"));
        refused(UnsupportedOperationException.class, "java.io", () -> FileSystem.getLocal(conf).pathToFile(a));
        that(FileSystem.getLocal(conf).pathToFile(outside).getPath().equals(outside.toString()), "pathToFile");
        refused(AccessControlException.class, "mode ro", () -> fs.create(new Path(readOnly, "x")));
        refused(AccessControlException.class, "mode ro", () -> fs.mkdirs(new Path(readOnly, "x")));
        refused(AccessControlException.class, "mode ro", () -> fs.delete(new Path(readOnly, "x"), true));
        refused(AccessControlException.class, ".dataset", () -> fs.create(new Path(top, ".dataset/x")));
        refused(AccessControlException.class, ".dataset", () -> fs.delete(new Path(top, ".dataset"), true));
        refused(AccessControlException.class, ".dataset", () -> fs.rename(a, new Path(top, ".dataset")));
        refused(AccessControlException.class, "sealed files", () -> fs.create(new Path(physical, "x")));
        refused(AccessControlException.class, "fs.sealed.writable", () -> fs.create(new Path("/nowhere/x")));
        refused(AccessControlException.class, "fs.sealed.writable", () -> fs.mkdirs(new Path("/nowhere")));
        refused(AccessControlException.class, "", () -> fs.create(new Path(outside, "../x")));
        refused(AccessControlException.class, "", () -> fs.delete(top.getParent(), true));
        refused(AccessControlException.class, "it is a volume", () -> fs.rename(top, new Path(top, "x")));
        refused(FileNotFoundException.class, "no/such", () -> fs.createNonRecursive(
                new Path(top, "no/such/file"), FsPermission.getFileDefault(), EnumSet.of(CreateFlag.CREATE), 0, (short) 1, 1L, null));
        that(fs.mkdirs(new Path("/")), "what exists needs no right");
    }

    private interface Action {
        void run() throws IOException;
    }

    private static Void run(Action action) throws IOException {
        action.run();
        return null;
    }

    private void fileContext() throws IOException {
        FileContext context = FileContext.getFileContext(URI.create("file:///"), conf);
        Path tmp = new Path(top, "c/.1.tmp");
        Path goal = new Path(top, "c/1");
        for (String text : new String[] {"first", "second"}) {
            try (FSDataOutputStream out = context.create(
                    tmp, EnumSet.of(CreateFlag.CREATE, CreateFlag.OVERWRITE), Options.CreateOpts.createParent())) {
                out.writeUTF(text);
            }
            context.rename(tmp, goal, Options.Rename.OVERWRITE);
            try (var in = context.open(goal)) {
                that(in.readUTF().equals(text), "FileContext " + text);
            }
        }
        that(context.getFileStatus(goal).getLen() == 8, "FileContext length");
        that(context.util().exists(goal) && !context.util().exists(tmp), "FileContext exists");
        refused(Exception.class, "", () -> context.create(goal, EnumSet.of(CreateFlag.APPEND)));
        refused(AccessControlException.class, "fs.sealed.writable",
                () -> context.create(new Path("/y"), EnumSet.of(CreateFlag.CREATE)));
        that(names(new Path(top, "c")).equals("1"), "no .crc, no rest: " + names(new Path(top, "c")));
    }

    private void aborts() throws IOException {
        Path path = new Path(top, "aborted");
        FSDataOutputStream out = fs.create(path);
        out.write(new byte[40_000]);
        out.abort();
        out.close();
        that(!fs.exists(path), "aborted");
        names(top);
        put(path, "new");
        that(get(path).equals("new"), "after abort");
    }

    /** Tasks commit by rename while others list: nobody may see a false alarm. */
    private void threads() throws Exception {
        Thread[] threads = new Thread[6];
        Throwable[] failed = new Throwable[1];
        for (int t = 0; t < threads.length; t++) {
            int id = t;
            threads[t] = new Thread(() -> {
                try {
                    for (int i = 0; i < 60; i++) {
                        if (id < 2) {
                            names(new Path(top, "t"));
                            fs.exists(new Path(top, "t/" + (2 + id) + "-" + i));
                        } else {
                            Path temporary = new Path(top, "t/_temporary/" + id + "/part-" + i);
                            put(temporary, "x".repeat(100));
                            fs.rename(temporary, new Path(top, "t/" + id + "-" + i));
                            if (i % 5 == 0) {
                                fs.delete(new Path(top, "t/" + id + "-" + i), false);
                            }
                        }
                    }
                } catch (Throwable e) {
                    failed[0] = e;
                }
            });
        }
        fs.mkdirs(new Path(top, "t"));
        for (Thread thread : threads) {
            thread.start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        if (failed[0] != null) {
            throw new AssertionError("false alarm", failed[0]);
        }
        that(fs.listStatus(new Path(top, "t")).length == 4 * 48 + 1, "files " + fs.listStatus(new Path(top, "t")).length);
    }
}
