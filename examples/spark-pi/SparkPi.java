import java.util.concurrent.ThreadLocalRandom;
import java.util.stream.IntStream;
import org.apache.spark.SparkConf;
import org.apache.spark.api.java.JavaSparkContext;

/** Pi by throwing points at a square: spark-submit --class SparkPi spark-pi.jar [SLICES]. */
public final class SparkPi {
    private static final int POINTS = 100_000;

    private static int insideCircle(int slice) {
        ThreadLocalRandom random = ThreadLocalRandom.current();
        return (int) IntStream.range(0, POINTS)
                .filter(i -> Math.hypot(random.nextDouble(-1, 1), random.nextDouble(-1, 1)) <= 1)
                .count();
    }

    public static void main(String[] arguments) {
        int slices = arguments.length > 0 ? Integer.parseInt(arguments[0]) : 2;
        try (JavaSparkContext spark = new JavaSparkContext(new SparkConf().setAppName("Spark Pi"))) {
            var numbers = spark.parallelize(IntStream.range(0, slices).boxed().toList(), slices);
            long inside = numbers.map(SparkPi::insideCircle).reduce(Integer::sum);
            System.out.println("Pi is roughly " + 4.0 * inside / ((long) slices * POINTS));
        }
    }
}
