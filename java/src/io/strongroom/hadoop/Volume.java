package io.strongroom.hadoop;

import java.net.URI;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.locks.ReadWriteLock;
import java.util.concurrent.locks.ReentrantReadWriteLock;
import org.apache.hadoop.fs.Path;

/**
 * One sealed folder of the job: the path that programs name and the path where the sealed files lie.
 *
 * <p>A folder without a scheme lies on {@code file:}; a volume of another file system names its folders by URI.
 */
final class Volume {
    /** Where data sets keep their manifests; no content of the volume. */
    static final String HIDDEN = ".dataset";
    /** Where the committed files go that a run deletes or replaces. */
    static final String KEPT = HIDDEN + "/kept";

    final String name;
    final Path logical;
    final Path physical;
    final boolean writable;
    /** What this JVM is writing, by relative path; its monitor is held by whoever ends, renames or deletes one. */
    final Map<String, Writing> open = new ConcurrentHashMap<>();
    /** Whether somebody made the top folder: an empty volume that nobody has made does not exist yet for programs. */
    volatile boolean made;
    /** Shared by changes, which touch file system and agent in turn; exclusive for who must see both agree. */
    final ReadWriteLock changes = new ReentrantReadWriteLock(true);

    /** A file that is being written: it may be renamed or deleted meanwhile. */
    static final class Writing {
        volatile String relative;
        volatile boolean gone;

        Writing(String relative) {
            this.relative = relative;
        }
    }

    /** Follows the renaming of what is at and below the path. */
    void renamed(String from, String to) {
        for (Writing writing : below(from)) {
            open.remove(writing.relative, writing);
            writing.relative = to + writing.relative.substring(from.length());
            open.put(writing.relative, writing);
        }
    }

    /** Follows the deletion of what is at and below the path. */
    void deleted(String path) {
        for (Writing writing : below(path)) {
            writing.gone = true;
            open.remove(writing.relative, writing);
        }
    }

    private List<Writing> below(String path) {
        return open.values().stream()
                .filter(w -> w.relative.equals(path) || w.relative.startsWith(path + "/"))
                .toList();
    }

    Volume(String name, String logical, String physical, boolean writable) {
        this.name = name;
        this.logical = qualify(logical);
        this.physical = qualify(physical);
        this.writable = writable;
    }

    static Path qualify(String folder) {
        Path path = new Path(folder);
        if (!path.isAbsolute() || escapes(path)) {
            throw new IllegalArgumentException("not an absolute path: " + folder);
        }
        URI uri = path.toUri();
        return uri.getScheme() == null ? new Path("file", uri.getAuthority(), uri.getPath()) : path;
    }

    /** Whether the path still has {@code ..} after normalisation: it names something above the root. */
    static boolean escapes(Path path) {
        return ("/" + path.toUri().getPath() + "/").contains("/../");
    }

    /** Returns the path below the folder, without leading slash ({@code ""} for the folder), or null if outside. */
    static String below(Path folder, Path path) {
        URI top = folder.toUri();
        URI uri = path.toUri();
        if (!Objects.equals(top.getScheme(), uri.getScheme())
                || !Objects.equals(top.getAuthority(), uri.getAuthority())) {
            return null;
        }
        String prefix = top.getPath();
        String full = uri.getPath();
        if (full.equals(prefix)) {
            return "";
        }
        String start = prefix.endsWith("/") ? prefix : prefix + "/";
        return full.startsWith(start) ? full.substring(start.length()) : null;
    }

    /** Whether one of the volume's folders is the given one or lies below it. */
    boolean isBelow(Path folder) {
        return below(folder, logical) != null || below(folder, physical) != null;
    }

    static Path child(Path folder, String relative) {
        URI top = folder.toUri();
        if (relative.isEmpty()) {
            return folder;
        }
        String start = top.getPath().endsWith("/") ? top.getPath() : top.getPath() + "/";
        return new Path(top.getScheme(), top.getAuthority(), start + relative);
    }
}
