package io.strongroom.hadoop;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.GeneralSecurityException;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.Collectors;
import javax.crypto.Cipher;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.SecretKeySpec;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RawLocalFileSystem;

/** The Java side of tests/integration/test_java_core.py: {@code methods}, {@code files} or {@code bench}. */
public final class Checks {
    private Checks() {}

    /** Runs the check that the first argument names. */
    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "methods" -> methods();
            case "files" -> files();
            case "shell" -> Shell.main(Arrays.copyOfRange(arguments, 1, arguments.length));
            case "volume" -> VolumeChecks.main(Arrays.copyOfRange(arguments, 1, arguments.length));
            case "bench" -> Bench.main(Arrays.copyOfRange(arguments, 1, arguments.length));
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }

    // ---- methods: what each of our classes inherits, and from whom

    private static void methods() {
        inherited(SealedFileSystem.class);
        inherited(SealedLocalFileSystem.class);
        inherited(SealedFs.class);
    }

    private static void inherited(Class<?> ours) {
        Map<String, Class<?>> nearest = new TreeMap<>();
        for (Class<?> type = ours; type != null && type != Object.class; type = type.getSuperclass()) {
            collect(type, type, nearest);
            for (Class<?> shape : type.getInterfaces()) {
                if (shape.getName().startsWith("org.apache.hadoop.")) {
                    collect(shape, shape, nearest);
                }
            }
        }
        nearest.forEach((signature, type) -> {
            if (type != ours) {
                System.out.println(ours.getSimpleName() + " " + type.getSimpleName() + "." + signature);
            }
        });
    }

    private static void collect(Class<?> type, Class<?> owner, Map<String, Class<?>> nearest) {
        for (Method method : type.getDeclaredMethods()) {
            int modifiers = method.getModifiers();
            boolean open = Modifier.isPublic(modifiers) || Modifier.isProtected(modifiers);
            if (open && !Modifier.isStatic(modifiers) && !method.isSynthetic()) {
                String parameters = Arrays.stream(method.getParameterTypes()).map(Class::getSimpleName)
                        .collect(Collectors.joining(","));
                nearest.putIfAbsent(method.getName() + "(" + parameters + ")", owner);
            }
        }
    }

    // ---- files: one command a line on standard input, one answer a line

    private static void files() throws IOException {
        RawLocalFileSystem local = new RawLocalFileSystem();
        local.initialize(java.net.URI.create("file:///"), new Configuration(false));
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] words = line.split(" ");
            try {
                if (words[0].equals("seal")) {
                    seal(local, words);
                } else {
                    open(local, words);
                }
                System.out.println("ok");
            } catch (SealedIntegrityException e) {
                System.out.println("refused " + e.getMessage());
            } catch (IOException | RuntimeException e) {
                System.out.println("error " + e);
            }
        }
    }

    /** seal SECRET PREFIX PLAINFILE SEALEDFILE SEED: writes in pieces of random size. */
    private static void seal(FileSystem local, String[] words) throws IOException {
        byte[] plain = Files.readAllBytes(java.nio.file.Path.of(words[3]));
        FSDataOutputStream out = local.create(new Path(words[4]), true);
        SealedOutput.Ending none = new SealedOutput.Ending() {
            @Override
            public void finish(long size) throws IOException {
                if (size != plain.length) {
                    throw new IOException("size " + size);
                }
            }

            @Override
            public void abort() {
                // The caller looks at the exception.
            }
        };
        Random random = new Random(Long.parseLong(words[5]));
        try (SealedOutput sealed = new SealedOutput(out, secret(words[1]), HexFormat.of().parseHex(words[2]), none)) {
            for (int at = 0; at < plain.length; ) {
                int n = Math.min(plain.length - at, 1 + random.nextInt(random.nextBoolean() ? 100_000 : 10));
                if (n == 1) {
                    sealed.write(plain[at]);
                } else {
                    sealed.write(plain, at, n);
                }
                at += n;
                if (random.nextInt(8) == 0) {
                    sealed.hflush();
                }
            }
        }
    }

    /** open SECRET SEALEDFILE PLAINFILE SIZE SEED: reads in sequence, and at random places by every kind of read. */
    private static void open(FileSystem local, String[] words) throws IOException {
        long size = Long.parseLong(words[4]);
        FSDataInputStream raw = local.open(new Path(words[2]), 4096);
        try (FSDataInputStream in = new FSDataInputStream(new SealedInput(raw, secret(words[1]), words[2], size))) {
            byte[] plain = in.readAllBytes();
            if (plain.length != size) {
                throw new IOException("read " + plain.length + " bytes");
            }
            places(in, plain, new Random(Long.parseLong(words[5])));
            Files.write(java.nio.file.Path.of(words[3]), plain);
        }
    }

    private static void places(FSDataInputStream in, byte[] plain, Random random) throws IOException {
        for (int i = 0; i < 200; i++) {
            int at = random.nextInt(plain.length + 1);
            int count = Math.min(plain.length - at, random.nextInt(i % 4 == 0 ? 600_000 : 20_000));
            byte[] found = new byte[count];
            if (i % 3 == 0) {
                in.readFully(at, found);
            } else {
                in.seek(at);
                if (i % 3 == 1) {
                    in.readFully(found);
                } else {
                    java.nio.ByteBuffer buffer = java.nio.ByteBuffer.allocateDirect(count);
                    while (buffer.hasRemaining()) {
                        if (in.read(buffer) <= 0) {
                            throw new IOException("read(ByteBuffer) stopped at " + buffer.position());
                        }
                    }
                    buffer.flip().get(found);
                }
                if (in.getPos() != at + count) {
                    throw new IOException("position " + in.getPos());
                }
            }
            if (!Arrays.equals(found, 0, count, plain, at, at + count)) {
                throw new IOException("other bytes at " + at + " + " + count);
            }
        }
        in.seek(plain.length);
        if (in.read() != -1 || in.read(plain.length, new byte[1], 0, 1) != -1) {
            throw new IOException("no end of file");
        }
    }

    static Cobblestone secret(String hex) {
        return new Cobblestone(HexFormat.of().parseHex(hex));
    }

    /** Raw speed against Cipher alone; figures for people, not a test. */
    static final class Bench {
        private Bench() {}

        static void main(String[] arguments) throws IOException, GeneralSecurityException {
            int size = Integer.parseInt(arguments[1]) << 20;
            Path path = new Path(arguments[0]);
            RawLocalFileSystem local = new RawLocalFileSystem();
            local.initialize(java.net.URI.create("file:///"), new Configuration(false));
            for (int round = 0; round < 6; round++) {
                cipher(size, Cipher.ENCRYPT_MODE);
                cipher(size, Cipher.DECRYPT_MODE);
                write(local, path, size);
                for (int buffer : new int[] {8192, 65_536, 262_144}) {
                    read(local, path, size, buffer);
                }
                rawRead(local, path, 262_144);
                opens(local, path, size);
            }
        }

        private static String secretHex() {
            return "07".repeat(44);
        }

        private static void report(String what, long bytes, long began, long wall) {
            double cpu = (cpuNow() - began) / 1e9;
            System.out.printf("%-24s %6.2f GB/s cpu %6.2f GB/s wall%n", what, bytes / cpu / 1e9,
                    bytes / ((System.nanoTime() - wall) / 1e9) / 1e9);
        }

        private static long cpuNow() {
            return java.lang.management.ManagementFactory.getThreadMXBean().getCurrentThreadCpuTime();
        }

        private static void cipher(int size, int mode) throws GeneralSecurityException {
            Cipher cipher = Cipher.getInstance("AES/GCM/NoPadding");
            SecretKeySpec key = new SecretKeySpec(new byte[32], "AES");
            byte[] in = new byte[16_384];
            byte[] out = new byte[16_400];
            byte[] nonce = new byte[12];
            cipher.init(Cipher.ENCRYPT_MODE, key, new GCMParameterSpec(128, nonce));
            cipher.doFinal(in, 0, in.length, out, 0);
            byte[] sealed = out.clone();
            long began = cpuNow();
            long wall = System.nanoTime();
            for (int done = 0; done < size; done += 16_384) {
                if (mode == Cipher.ENCRYPT_MODE) {
                    nonce[0]++;
                    nonce[1] ^= (byte) (done >> 14);
                    cipher.init(mode, key, new GCMParameterSpec(128, nonce));
                    cipher.doFinal(in, 0, in.length, out, 0);
                } else {
                    cipher.init(mode, key, new GCMParameterSpec(128, new byte[12]));
                    cipher.doFinal(sealed, 0, sealed.length, in, 0);
                }
            }
            report(mode == Cipher.ENCRYPT_MODE ? "Cipher alone seal" : "Cipher alone open", size, began, wall);
        }

        private static void write(FileSystem local, Path path, int size) throws IOException {
            SealedOutput.Ending none = new SealedOutput.Ending() {
                @Override
                public void finish(long plain) {}

                @Override
                public void abort() {}
            };
            byte[] data = new byte[65_536];
            // /dev/null too: the file system's own copy is not ours.
            for (Path to : new Path[] {path, new Path("/dev/null")}) {
                long began = cpuNow();
                long wall = System.nanoTime();
                FSDataOutputStream out = to == path ? local.create(to, true)
                        : new FSDataOutputStream(java.io.OutputStream.nullOutputStream(), null);
                try (SealedOutput sealed = new SealedOutput(out, secret(secretHex()), new byte[184], none)) {
                    for (int done = 0; done < size; done += data.length) {
                        sealed.write(data, 0, data.length);
                    }
                }
                report(to == path ? "seal to file + fsync" : "seal to nowhere", size, began, wall);
            }
        }

        private static void read(FileSystem local, Path path, int size, int buffer) throws IOException {
            byte[] data = new byte[buffer];
            long began = cpuNow();
            long wall = System.nanoTime();
            try (SealedInput in = new SealedInput(local.open(path, 4096), secret(secretHex()), "bench", size)) {
                long sum = 0;
                for (int n = in.read(data, 0, buffer); n > 0; n = in.read(data, 0, buffer)) {
                    sum += n;
                }
                if (sum != size) {
                    throw new IOException("short");
                }
            }
            report("open, buffer " + buffer, size, began, wall);
        }

        private static void rawRead(FileSystem local, Path path, int buffer) throws IOException {
            byte[] data = new byte[buffer];
            long began = cpuNow();
            long wall = System.nanoTime();
            long sum = 0;
            try (FSDataInputStream in = local.open(path, 4096)) {
                for (int n = in.read(data, 0, buffer); n > 0; n = in.read(data, 0, buffer)) {
                    sum += n;
                }
            }
            report("RawLocal alone " + buffer, sum, began, wall);
        }

        private static void opens(FileSystem local, Path path, int size) throws IOException {
            long wall = System.nanoTime();
            for (int i = 0; i < 2000; i++) {
                new SealedInput(local.open(path, 4096), secret(secretHex()), "bench", size).close();
            }
            long checked = System.nanoTime();
            for (int i = 0; i < 2000; i++) {
                local.open(path, 4096).close();
            }
            long end = System.nanoTime();
            System.out.printf("open with final chunk %.1f us, open alone %.1f us%n", (checked - wall) / 2e6,
                    (end - checked) / 2e6);
        }
    }
}
