package io.strongroom.hadoop;

import org.apache.hadoop.fs.Path;

/** A path and where it lives; {@code volume} is null outside volumes, then both paths are the same. */
final class Spot {
    final Volume volume;
    final String relative;
    final Path logical;
    final Path physical;

    Spot(Volume volume, String relative, Path logical, Path physical) {
        this.volume = volume;
        this.relative = relative;
        this.logical = logical;
        this.physical = physical;
    }

    boolean sealed() {
        return volume != null;
    }

    /** Whether this is the top of a volume that holds nothing and that this session did not make. */
    boolean unmade(boolean empty) {
        return sealed() && relative.isEmpty() && volume.writable && !volume.made && empty;
    }

    /** Whether the path belongs to the data set itself and is no content. */
    boolean hidden() {
        return sealed() && ("/" + relative + "/").contains("/" + Volume.HIDDEN + "/");
    }

    Spot child(String name) {
        String below = relative.isEmpty() ? name : relative + "/" + name;
        return new Spot(volume, below, Volume.child(logical, name), Volume.child(volume.physical, below));
    }
}
