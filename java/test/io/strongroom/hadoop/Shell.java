package io.strongroom.hadoop;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;

/** Does to a file system what standard input says, a line each, and answers each with a line. */
final class Shell {
    private final FileSystem fs;
    private final Map<String, FSDataOutputStream> streams = new HashMap<>();

    private Shell(FileSystem fs) {
        this.fs = fs;
    }

    static void main(String[] arguments) throws IOException {
        Configuration conf = new Configuration(false);
        conf.set("fs.file.impl", SealedLocalFileSystem.class.getName());
        conf.set("fs.AbstractFileSystem.file.impl", SealedFs.class.getName());
        conf.set(SealedFileSystem.AGENT, arguments[0]);
        Shell shell = new Shell(FileSystem.get(URI.create("file:///"), conf));
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String answer;
            try {
                answer = String.valueOf(shell.run(line.split(" ")));
            } catch (IOException | RuntimeException e) {
                answer = e.getClass().getSimpleName() + ": " + e.getMessage();
            }
            System.out.println(answer);
        }
    }

    private Object run(String[] words) throws IOException {
        Path path = new Path(words[words.length == 1 ? 0 : 1]);
        switch (words[0]) {
            case "interrupted" -> {
                Thread.currentThread().interrupt();
                try {
                    return run(java.util.Arrays.copyOfRange(words, 1, words.length));
                } finally {
                    Thread.interrupted();
                }
            }
            case "write" -> {
                try (FSDataOutputStream out = fs.create(path, true)) {
                    out.write(words[2].getBytes(StandardCharsets.UTF_8));
                }
                return "written";
            }
            case "begin" -> {
                FSDataOutputStream out = fs.create(path, true);
                out.write(1);
                streams.put(words[2], out);
                return "begun";
            }
            case "close" -> {
                streams.remove(words[1]).close();
                return "closed";
            }
            case "delete" -> {
                return fs.delete(path, words.length > 2);
            }
            case "rename" -> {
                return fs.rename(path, new Path(words[2]));
            }
            case "mkdirs" -> {
                return fs.mkdirs(path);
            }
            case "exists" -> {
                return fs.exists(path);
            }
            case "list" -> {
                Map<String, Long> found = new TreeMap<>();
                for (FileStatus status : fs.listStatus(path)) {
                    found.put(status.getPath().getName(), status.getLen());
                }
                return found;
            }
            default -> throw new IllegalArgumentException(words[0]);
        }
    }
}
