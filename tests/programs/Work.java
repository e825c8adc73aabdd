import java.io.File;
import java.io.FileWriter;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

/**
 * A program of many threads on a Java virtual machine: checksums of objects that the collector moves, exceptions that begin as SIGSEGV,
 * stacks that overflow, locks, queues, timed waits. Rounds until DIR/stop exists.
 *
 * <p>usage: java Work.java DIR
 */
public class Work {
    static String dir;
    static final List<byte[]> old = new ArrayList<>();
    static final Object lock = new Object();
    static long guarded;
    static String none;

    static void fail(String what) {
        try (FileWriter out = new FileWriter(new File(dir, "result"), true)) {
            out.write("FAIL Work.java: " + what + "\n");
        } catch (Exception e) {
            what += "; " + e;
        }
        System.err.println(what);
        Runtime.getRuntime().halt(1);
    }

    static void need(boolean right, String what) {
        if (!right) fail(what);
    }

    static long next(long h) {
        return h * 6364136223846793005L + 1442695040888963407L;
    }

    /** The exclusive or of 3000 numbers, straight. */
    static long plain(long seed) {
        long x = 0, h = seed;
        for (int i = 0; i < 3000; i++) x ^= h = next(h);
        return x;
    }

    /** The same, through a map of objects with garbage between. */
    static long churned(long seed) {
        Map<Long, byte[]> map = new HashMap<>();
        long h = seed, x = 0;
        for (int i = 0; i < 3000; i++) {
            h = next(h);
            byte[] body = new byte[16 + (int) (h >>> 56)];
            body[body.length - 1] = (byte) h;
            map.put(h, body);
        }
        for (Map.Entry<Long, byte[]> e : map.entrySet()) {
            byte[] body = e.getValue();
            need(body[body.length - 1] == (byte) (long) e.getKey(), "a body changed");
            x ^= e.getKey();
        }
        synchronized (lock) {
            guarded++;
            lock.notifyAll();
        }
        return x;
    }

    static int depth(int n) {
        return depth(n + 1) + 1;
    }

    static void exceptions() {
        int caught = 0;
        for (int i = 0; i < 50; i++) {
            try {
                caught += none.length();
            } catch (NullPointerException e) {
                caught++;
            }
        }
        need(caught == 50, "null pointers");
        try {
            depth(0);
            fail("the stack is endless");
        } catch (StackOverflowError e) {
            caught++;
        }
        need(caught == 51, "a stack overflow");
    }

    public static void main(String[] args) throws Exception {
        dir = args[0];
        ExecutorService pool = Executors.newFixedThreadPool(4);
        BlockingQueue<Long> asked = new LinkedBlockingQueue<>(), answers = new LinkedBlockingQueue<>();
        AtomicLong ticks = new AtomicLong();
        Thread echo = new Thread(() -> {
            try {
                for (long n; (n = asked.take()) >= 0; ) answers.put(n * 3);
            } catch (InterruptedException e) {
                fail("interrupted");
            }
        });
        Thread ticker = new Thread(() -> {
            while (true) {
                LockSupport.parkNanos(5_000_000);
                ticks.incrementAndGet();
            }
        });
        ticker.setDaemon(true);
        echo.start();
        ticker.start();
        ByteBuffer direct = ByteBuffer.allocateDirect(1 << 20);
        long rounds = 0, sum = 0, wanted = 0, time = System.nanoTime(), before;
        try (RandomAccessFile progress = new RandomAccessFile(new File(dir, "progress"), "rw")) {
            while (rounds == 0 || !new File(dir, "stop").exists()) {
                rounds++;
                before = ticks.get();
                List<Future<Long>> parts = new ArrayList<>();
                for (int t = 0; t < 4; t++) {
                    long seed = rounds * 4 + t;
                    parts.add(pool.submit(() -> churned(seed)));
                    wanted = wanted * 31 + plain(seed);
                }
                synchronized (lock) {
                    while (guarded < rounds * 4) lock.wait(1000);
                }
                for (Future<Long> part : parts) sum = sum * 31 + part.get(60, TimeUnit.SECONDS);
                need(sum == wanted, "round " + rounds + ": the checksum is " + sum + ", wanted " + wanted);
                // Objects that live for long are moved by the collector.
                byte[] kept = new byte[20_000];
                kept[(int) (rounds % 20_000)] = (byte) rounds;
                old.add(kept);
                if (old.size() > 400) old.subList(0, 200).clear();
                for (int i = 0; i < old.size(); i++) {
                    long of = rounds - old.size() + 1 + i;
                    need(old.get(i)[(int) (of % 20_000)] == (byte) of, "an old object changed");
                }
                direct.putLong((int) (rounds % 100_000) * 8, sum);
                need(direct.getLong((int) (rounds % 100_000) * 8) == wanted, "direct memory");
                asked.put(rounds);
                need(answers.poll(60, TimeUnit.SECONDS) == rounds * 3, "the other thread's answer");
                if (rounds % 10 == 0) exceptions();
                if (rounds % 25 == 0) System.gc();
                long now = System.nanoTime();
                need(now >= time, "time ran backwards");
                time = now;
                Thread.sleep(5);
                while (ticks.get() == before) Thread.onSpinWait();
                progress.seek(0);
                progress.writeBytes(String.format("%-20d\n", rounds));
            }
        }
        asked.put(-1L);
        echo.join();
        pool.shutdown();
        need(pool.awaitTermination(30, TimeUnit.SECONDS) && rounds > 0, "the end");
        System.out.println("checksum " + sum);
        try (FileWriter out = new FileWriter(new File(dir, "result"))) {
            out.write("ok\n");
        }
    }
}
