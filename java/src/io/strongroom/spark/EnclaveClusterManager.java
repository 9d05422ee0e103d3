package io.strongroom.spark;

import org.apache.spark.SparkContext;
import org.apache.spark.rpc.RpcEnv;
import org.apache.spark.scheduler.ExternalClusterManager;
import org.apache.spark.scheduler.SchedulerBackend;
import org.apache.spark.scheduler.TaskScheduler;
import org.apache.spark.scheduler.TaskSchedulerImpl;
import org.apache.spark.scheduler.cluster.CoarseGrainedSchedulerBackend;

/**
 * The master `spark-enclaves[N]`: N executors, each in an enclave of its own.
 *
 * <p>Nobody starts them from here: their guests do, once the driver's guest has admitted them, and they register by
 * themselves. So there is neither a master nor a worker process, no page that answers anybody, and no secret to pass on.
 */
public final class EnclaveClusterManager implements ExternalClusterManager {
    private static final String MASTER = "spark-enclaves[";

    @Override
    public boolean canCreate(String master) {
        return master.startsWith(MASTER) && master.endsWith("]");
    }

    @Override
    public TaskScheduler createTaskScheduler(SparkContext context, String master) {
        return new TaskSchedulerImpl(context);
    }

    @Override
    public SchedulerBackend createSchedulerBackend(SparkContext context, String master, TaskScheduler scheduler) {
        int executors = Integer.parseInt(master.substring(MASTER.length(), master.length() - 1));
        return new Backend((TaskSchedulerImpl) scheduler, context.env().rpcEnv(), executors);
    }

    @Override
    public void initialize(TaskScheduler scheduler, SchedulerBackend backend) {
        ((TaskSchedulerImpl) scheduler).initialize(backend);
    }

    private static final class Backend extends CoarseGrainedSchedulerBackend {
        private final int executors;

        Backend(TaskSchedulerImpl scheduler, RpcEnv rpc, int executors) {
            super(scheduler, rpc);
            this.executors = executors;
        }

        /** The executors' command line is measured, so their application's id is the same in every run. */
        @Override
        public String applicationId() {
            return "strongroom";
        }

        /** The first stage waits for all executors, for spark.scheduler.maxRegisteredResourcesWaitingTime at most. */
        @Override
        public boolean sufficientResourcesRegistered() {
            return totalRegisteredExecutors().get() >= executors;
        }
    }
}
