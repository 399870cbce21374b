defmodule PartitionedBuffer do
  @moduledoc """
  Write buffers, for processes that write faster than a database, broker or API accepts writes.

  Processes write entries to a buffer at any rate. A buffer has partitions, and each partition
  *flushes* at an interval: it swaps out its waiting entries and gives them to the *processor*, a
  function that takes one batch of entries at a time. Buffers come in three kinds:

    * `PartitionedBuffer.Map` holds key–value entries. Writes to the same key coalesce: the last or
      the newest value stays.
    * `PartitionedBuffer.Counter` holds sums. Amounts for the same key add up.
    * `PartitionedBuffer.Queue` holds items, which keep their order.

  This module documents the common parts of all kinds: options, guarantees and telemetry events.
  Here, "entry" also means an item of a queue.

  ## Start options

  `start_link/1` and child specifications take these options.

  | option | type | default | meaning |
  |---|---|---|---|
  | `:name` | atom | required | the name of the buffer |
  | `:processor` | function of arity 1, or `{module, function, args}` | required | is called with each batch; an MFA gets the batch before `args` |
  | `:partitions` | integer from 0 to 4096 | `System.schedulers_online/0` | the partition count; with 0 every operation except `stop/4` and `emit_info/1` raises a `RuntimeError` |
  | `:processing_interval_ms` | positive integer, or `:infinity` | 5000 | how often each partition flushes; with `:infinity` only a threshold, a full buffer, `flush/2` and a stop flush, and failed entries are still retried |
  | `:processing_jitter_ms` | non-negative integer | 0 | each interval is longer by a random time up to this, so partitions and nodes do not flush in step |
  | `:processing_timeout_ms` | integer from 0, or `:infinity` | 60000 | how long a call of the processor may take: during a stop, and with `:max_attempts` always; see [Guarantees](#module-guarantees) |
  | `:processing_batch_size` | positive integer, `:table`, or `{acc, function of arity 2}` | 10 | entries per batch; for a table see [Tables](#module-tables), for a function [Batch functions](#module-batch-functions) |
  | `:processing_batch_bytes` | positive integer, or `:infinity` | `:infinity` | the most bytes of a batch with several entries, by `:erlang.external_size/1` of each entry; not with a table or a batch function. A batch then has at most 10,000 entries |
  | `:processing_threshold` | positive integer, or `:infinity` | `:infinity` | the count of waiting entries at which a partition flushes at once; see [Threshold and bound](#module-threshold-and-bound) |
  | `:max_size` | positive integer, or `:infinity` | `:infinity` | the most entries that the whole buffer holds, waiting and in flight |
  | `:max_bytes` | positive integer, or `:infinity` | `:infinity` | the most memory of the entries, in bytes, as `info/1` counts it; see [Threshold and bound](#module-threshold-and-bound) |
  | `:full_timeout_ms` | integer from 0 | 5000 | how long a write waits for room in a full buffer; 0 does not wait |
  | `:when_full` | `:raise`, `:error`, `:drop_newest` | `:raise` | what a write without room does: it raises a `PartitionedBuffer.FullError`, returns `{:error, :full}`, or is dropped and returns `:ok` |
  | `:max_attempts` | positive integer, or `:infinity` | not given | how often the processor may fail with an entry, alone or named, before the entry is given up; see [Delivery](#module-delivery) |
  | `:retry_backoff_ms` | `{min, max}`, or function of arity 1 | `{1000, 30000}` | the pause after [failures that are not isolated](#module-isolation): its base doubles from `min` to `max` with each failure in a row, and a random time from half the base to the whole base is taken. For a function, see [Pauses](#module-pauses) |
  | `:dead_letter` | function of arity 2, or `{module, function, args}` | none | is called with a list of entries given up, and the reason; needs `:max_attempts` |
  | `:order` | `:strict`, `:none` | `:strict` | only of a queue, with `:max_attempts`: whether newer items wait behind a failed item |
  | `:versions` | `:clock`, `:own` | not given | only of a map: whose versions the entries have; see [Versions](`m:PartitionedBuffer.Map#module-versions`) |
  | `:cluster` | `true`, or keyword list | none | only of a map or counter, with `:max_attempts`: the nodes share the buffer; see `PartitionedBuffer.Cluster` |
  | `:journal` | path, or keyword list | none | with `:max_attempts`, without `:cluster`: a copy of the entries in files survives the VM; see [Surviving a crash](surviving-a-crash.md) |
  | `:format_reason` | function of arity 1, or `{module, function, args}` | none | returns the text of a failure reason for log lines and `info/1`; see [Reasons](#module-reasons) |
  | `:drain_timeout_ms` | integer from 0, or `:infinity` | `:infinity`; 60000 with `:max_attempts` | how long a stop may take in all to process the entries |

  A function captured by name (`&MyApp.Users.process/1`) or an MFA survives code upgrades. An
  anonymous function survives one load of its module, but not a second.

  Times are in milliseconds. The interval may be any number that the timers of the VM allow; all
  other times, `:max_size` and `:processing_threshold` are at most 4,294,967,295, and `:max_bytes`
  and `:processing_batch_bytes` at most 2^60.

  A missing or invalid option raises an `ArgumentError`, or a `NimbleOptions.ValidationError` if
  that module is available. An unknown option raises the same error at the start of a
  `PartitionedBuffer.Counter`. At that of a map or queue it is ignored, as in version 0.4, and a
  warning is logged. Buffers defined with `use` raise an `ArgumentError`. The keys `:id`, `:start`,
  `:restart`, `:shutdown`, `:type`, `:modules` and `:significant` of a child specification may be
  among the options of a start, and have no effect there.

  A function captured by name, or of an MFA, that does not exist at the start is a warning too.

  ## Runtime options

  Single calls take these options. An unknown or invalid option raises the same error as an invalid
  start option.

    * `:partition_key` – chooses the partition in place of the key or item. A function of arity 1 is
      called with the key or item and returns the partition key; `{module, function, args}` is
      called with the key or item before `args`. Any other term except `nil` is the partition key of
      all entries of the call. Entries with the same partition key are in the same partition. Reads
      find an entry only with the partition key of its write.

  `PartitionedBuffer.Map.put_newer/5` also takes `stale: :error`, and `flush/2` has its own options.

  The partition of a partition key is `:erlang.phash2(partition_key, partitions)`. Without a
  partition key, a key or item is in the partition
  `:erlang.phash2(:erlang.phash2(key), partitions)`.

  ## Delivery

  Without `:max_attempts` the processor gets each batch once, and its result is ignored. The first
  `:error`, or tuple that begins with it, is a warning for each partition and start. With
  `:max_attempts` an entry stays in the buffer until the processor succeeds with it, or it is given
  up. The result of the processor is the outcome of the batch:

  | return | meaning | counts as an attempt | the partition |
  |---|---|---|---|
  | `:error`, `{:error, reason}`, an exception, throw, exit or kill | all entries failed | only of a single entry | [isolates](#module-isolation) the cause |
  | any other tuple that begins with `:error`, such as the error of an `Ecto.Multi` | all entries failed; the tuple is the reason | only of a single entry | isolates the cause |
  | the time limit | all entries failed | only of a single entry | pauses, then isolates the cause |
  | `{:error, reason, entries}` | these entries failed, the others succeeded | yes, for these | goes on; a queue with its order pauses |
  | `{:partial, reason, retry: entries, cancel: entries}` | the entries of `:retry` failed, those of `:cancel` are given up, the others succeeded; either may be left out | yes, for those of `:retry` | goes on; after a failed item, a queue with its order pauses |
  | `{:snooze, ms}` | not now: all entries are retried | no | pauses for `ms` milliseconds |
  | `{:snooze, ms, :buffer}` | the same | no | and all others pause |
  | `{:cancel, reason}`, `{:cancel, reason, entries}` | all entries, or these, cannot succeed and are given up; the others succeeded | | goes on |
  | anything else | all entries succeeded | | goes on |

  `entries` are entries of the batch, in any order. An item of a queue is named as often as it
  failed. `ms` is any number. The pause is at least the shortest one of `:retry_backoff_ms`, or 1000
  if that is a function, and at most a day. The first time that this changes `ms` is a warning for
  each partition and start. A tuple that begins with `:snooze`, `:partial` or `:cancel` and is not as
  in the table, or a tuple with other entries, is a failure of the whole batch, with the reason
  `{:bad_return, returned}`.

    * **A failed entry of a map waits again**, with its version and updates, unless a newer entry of
      its key waits, or it was deleted while in flight. A newer write begins with no attempts.
    * **A failed entry of a counter is added** to the waiting entry of its key, if any, unless it
      was deleted while in flight. It keeps its attempts.
    * **A failed item of a queue stays at the head**: the order is kept, and newer items wait behind
      it. With `order: :none` it waits again, and holds up no other item.
    * **A failure is isolated first, and waited out second.** A failed batch is tried again at once
      in smaller ones; the partition pauses only when single entries fail: see
      [Isolation](#module-isolation). `flush/2` ends a pause.
    * **Given up** is an entry that failed `:max_attempts` times or was cancelled. It goes to
      [`:dead_letter`](#module-dead-letters).
    * **Reads see entries in flight**: `get`, `fetch`, `put_new` and `put_newer` of
      `PartitionedBuffer.Map`, `get` and `fetch` of `PartitionedBuffer.Counter`.
    * **A delete reaches entries in flight.** If the entry is not in a batch yet, the processor does
      not get it. If it is in a batch, this call of the processor is the last with it. Reads no
      longer see it either way.
    * **At least once.** After a failure, a kill or a time limit, the sink may already hold the
      entries, or may still store them after newer ones. The statement should therefore be
      repeatable, and refuse older versions: `WHERE users.version < excluded.version`. A sum stored
      twice counts twice: see [Counting](counting.html#exactly-once).
    * **Also after crashes.** If a task dies, its batch counts as failed. This includes a batch that
      a killed task was reading, for example if the batch exceeds a limit of the heap. If the whole
      supervision tree was killed, the next one ends a task still running, before it retries the
      batch.
    * **A stop** by `stop/4` or of the VM retries with the shortest pause until `:drain_timeout_ms`
      is over. The remaining entries then go to `:dead_letter` with the reason `:stopped`. A stop by
      a supervisor ends at the first pause, and keeps them: see
      [Leftovers of a stop](#module-leftovers-of-a-stop).

  `:max_attempts` excludes `processing_batch_size: :table`.

  ### Isolation

  If a batch fails, its size or one of its entries may be the cause. A partition finds out before it
  pauses:

    * **A failed batch of several entries is split.** Its entries go to the processor again at once,
      before all others, in batches of at most a quarter of its size. A split counts no attempt, and
      has an [event](#module-telemetry) but no log line. Deleted entries are left out. After the time
      limit the partition pauses before it goes on.
    * **A single failed entry** counts an attempt and waits behind the others, and the partition
      goes on with them. It pauses at the third such failure since the last success, at the first
      one after a pause, and if no entry of the flush succeeded and no other is left. A queue with
      its order pauses at each. A batch of which all entries are named as failed counts as one such
      failure.
    * **Failed entries come last**, those with the fewest attempts first. If other entries of the
      flush succeeded, the partition tries a few, at most once in the time of the shortest pause,
      without a pause. `flush/2` and a stop try all.
    * **The limit of the next batch**, `:limit` in `info/1`, grows again: each full batch that
      succeeds multiplies it by four, up to half the size of the batch split last. After 16
      successes in a row, this bound doubles. After a single entry failed or was cancelled, the bound
      is the batch size.
    * **After a pause** the limit is as before, so a sink that is down gets one call with one entry
      for each pause. Entries that a newer write replaced are left out. A queue with its order begins
      with its first item.
    * **Failed entries do not delay new ones.** If a flush has a rest after a pause, and others wait,
      they are flushed together, if an entry of the flush succeeded or all of the rest failed.

  One bad entry in a batch of 1,000 costs some 20 calls, then one in each flush until it is given up,
  and no pause. With batches of 1,000, a sink that takes 100 entries refuses 6 % of the calls. The
  limit outlives each process of the buffer, but not a start with another partition count.

  ### Batch functions

  A function as `:processing_batch_size` decides where a batch ends, for example by the bytes of its
  entries. It is given as `{acc, function}`. The function gets an entry, as in a batch, and `acc`,
  and returns one of these:

    * `{:cont, acc}` – the batch goes on after this entry, with this `acc`.
    * `{:emit, acc}` – the batch ends with this entry. The next batch begins with the first `acc`.

  A batch has at most 10,000 entries, and not more than the limit after a failure. The function runs
  in the task of the processor, and may get an entry several times. If it raises, throws, exits or
  returns anything else, the batch ends before the entry. If it also fails with the entry as the
  first one, this is a failure of that entry alone, as if the processor failed with it.
  `:processing_timeout_ms` holds for the function as for a call of the processor.

  ### Pauses

  A failure in a row is a failure that began a pause. The row ends when the processor succeeds with
  an entry.

  A function as `:retry_backoff_ms` gets the number of failures in a row, the present one included,
  and returns the pause: an integer from 0 to 4,294,967,295 milliseconds. A stop calls it with 1,
  since it retries after the shortest pause. A snooze during a stop is not longer than that.

  The function runs in a separate process, which has the task of the processor in its `$callers`. It
  may take half of `:processing_timeout_ms`, and at most 5 seconds. If it raises, throws, exits,
  takes longer or returns anything else, an error is logged, and the pause is 30 seconds.

  ### Reasons

  Log lines, `info/1` and `watch/2` show the reason of a failure without keys and values, in one
  line of at most 300 characters. The telemetry events and `:dead_letter` get the reason itself. The
  text shows:

    * atoms and numbers, and the names of structs, in tuples and in maps up to three deep. Of a map
      it shows only the keys that are atoms. Texts are `"…"`. Lists are `[…]`, with the errors of
      connections and files that they contain, such as `:nxdomain`.
    * the name of an exception and the first line of its message, at most 200 characters, up to the
      first term that the line quotes after a colon or a word like `value`. The message is left out
      for exceptions whose messages are made from terms, such as `MatchError`, `ArgumentError` and
      `DBConnection.EncodeError`. What the processor itself writes into a message is shown.
    * of a throw or an exit only atoms, numbers and names, and the name of a function that was
      called.

  A function as `:format_reason` makes another text: it gets the reason, and returns a string. It
  has the process and the time limit of a function as `:retry_backoff_ms`. If it fails, or returns
  anything but valid UTF-8, an error is logged, and the usual text is used. It is not called for a
  process that was killed in a buffer without `:max_attempts`.

  ### Dead letters

  `:dead_letter` is called in a task, as the processor is, with a list of entries and the reason.
  Each call may take as long as a call of the processor. Without the function, or if it fails or
  takes too long, the entries given up are gone, and their count and reason are logged.

  If the task is killed before or during the call, for example by a limit of the heap, the function
  gets the entries again, a quarter at a time. A single entry with which two tasks were killed is
  gone.

  The function also gets the same entries again if the partition did not see the end of the call:

    * The whole supervision tree, or the partition's process together with the task, was killed
      during the call. The next partition process calls the function again, with the reason
      `:killed`.
    * A call already running when a stop began took too long. The stop calls the function again,
      with the reason `:stopped`.
    * A call at the end of a stop took too long. The entries are kept, and the next start of the
      name and kind calls the function again, with the reason `:killed`. If the VM stops, they are
      lost.

  ### Leftovers of a stop

  What happens to entries that a stop could not process depends on who ends the buffer:

  | the buffer is ended by | retries | leftovers |
  |---|---|---|
  | the VM, which stops (`:init.get_status/0` returns `:stopping`) | until `:drain_timeout_ms` | go to `:dead_letter`; without that function they are lost |
  | `stop/4` of the application | until `:drain_timeout_ms` | go to `:dead_letter`; are kept without that function, or with `leftovers: :keep` |
  | a supervisor, while the VM goes on: it restarts the buffer, or its application is stopped | none: the first pause after a failure ends the work of its partition | are kept |

  Kept entries wait until a buffer of the same name and kind starts. If none does before the VM
  stops, they go to `:dead_letter` when the application `:partitioned_buffer` stops, which is after
  the applications that depend on it. The reason is `:stopped`, and each call may take
  `:processing_timeout_ms`. Without that function they are lost. This also holds if a supervisor
  gave up and took the VM down, and for buffers killed before. The options are those of the last
  start of the name and kind. Where the application `:partitioned_buffer` is not started, kept
  entries are lost when the VM ends.

  A stop with entries logs their count and its time limit at its beginning, the remaining count
  every 10 seconds, and at its end how many entries it gave up and what becomes of the others.

  ### Leftovers and the partition count

  After a start with another partition count, each leftover entry waits in the partition that its
  key or item chooses now. A custom `:partition_key` is not kept, so reads with it may not find the
  entry, and its order against new writes is not promised. Entries given up go to `:dead_letter`,
  with the reason `:killed`, and never back to the processor. Failures in a row start at 0, and
  batches at the batch size.

  Leftovers with the same key become one entry. A counter adds them up. In a map a waiting entry
  replaces the in-flight entry of its partition; but if the buffer had no `:max_attempts`, an
  in-flight entry stays over a waiting entry with a lower version, unless `put` wrote that one. Of
  the entries of two partitions the one with the higher version stays; with equal versions, either.

  ## Threshold and bound

  **A threshold** lets a partition flush before its interval is over. The write that brings the
  waiting entries to `:processing_threshold` notifies the partition, once for each flush. The
  partition flushes at once, or right after the current flush. Failed entries that wait again do not
  count, and a paused partition does not flush.

  **A bound** keeps the memory bounded while the sink is slower than the writers:

    * The buffer never holds more than `:max_size` entries. An entry counts until it succeeds, or is
      superseded, deleted or given up; without `:max_attempts`, until the processor gets it. A
      deleted entry in flight counts until its flush reaches it.
    * Only a write that adds an entry needs room. A full buffer takes a new value for a key with a
      waiting entry. The results `:stale` and `:exists` take precedence over `:full`.
    * A full buffer flushes all its partitions at once, unless they pause.
    * A write without room waits for room, up to `:full_timeout_ms` and a moment more. Writers get
      room in their order, as many at once as there is room for. A writer that dies gives its room
      or its place to the next one. So does a writer that is suspended for 100 ms when it gets room;
      later it has its place again. Waiting writers hold no scheduler.
    * A list needs room for all its entries, as if all were new. Without that room no entry is
      written. A list longer than `:max_size` raises an `ArgumentError`. An empty list needs none.
    * A processor never waits for room in its own buffer, nor does a task started by it, a process
      of the buffer, or a handler that runs there: `:when_full` decides at once.
    * If `:max_size` is set below the number of entries held, nothing is thrown away. New entries
      are refused until enough entries leave. A waiting list that is now too long raises at once.
    * A stop ends all waits: the writes raise an `ArgumentError`.

  **A bound of bytes**, `:max_bytes`, refuses writes while the memory of the entries, `:bytes` of
  `info/1`, is at the limit:

    * Every write that needs memory waits: one that adds an entry, and in a map also one that
      replaces a value. A counter adds to a key that has a sum. A delete never waits.
    * The size of a write is not known before. So the memory may exceed the limit by the writes that
      are under way, and by the estimate of one segment for each shard: up to 4 MB, and far less with
      small terms. Writers that wait are let in one after the other.
    * `:bytes` falls while a flush is processed.

  Both bounds may be set; a write needs room in both.

  `info/1` counts the refused and dropped writes.

  ## Guarantees

    * **No lost writes.** A write that returned `:ok` comes to the processor, unless a later write
      replaced it, its version was not newer, it was deleted, or `when_full: :drop_newest` dropped
      it. It is in exactly one flush; only a failure with `:max_attempts`, or a start with another
      partition count, lets its entry wait for another flush.
    * **Lists.** If the writer of a list is killed during the call, a part of the list may be written.
      A stop waits for lists that are being written, for up to five seconds: in a buffer with a bound
      each list is written as a whole or not at all, and so is one of more than 2,048 elements in
      any buffer.
    * **Atomic flushes.** A flush swaps out the entries under the locks of the partition. Each write
      is either in the flush or waits for the next one.
    * **At most once**, without `:max_attempts`. The processor gets each entry of a flush at most
      once. If the processor raises, exits or is killed, no later call gets that batch. The rest of
      the flush is processed at the next interval.
    * **Crashes.** Entries are kept in native memory until the processor gets them. If a partition,
      a task or the whole supervision tree dies, they are processed when the buffer runs again. They
      are lost if the VM ends.
    * **Order.** A partition processes one batch at a time, and its flushes in their order. If a key
      is written in the order of its versions, it is processed in that order.
    * **Independence.** Partitions flush independently of each other.
    * **Complete stops.** `stop/4`, like a shutdown of the supervision tree, waits for the flush in
      flight of each partition and then processes the waiting entries. All partitions do this at the
      same time. A partition also does this if its process or its task supervisor is dead at the
      start of the stop, or dies during the stop. Time limits hold, as follows.
    * **Time limit of a stop.** A call of the processor already running when the stop begins may
      take `:processing_timeout_ms`, counted from the beginning of the stop. Each later call may
      take the same time from its own beginning, and at least 5 seconds. A call that takes longer is
      killed, and its partition does not call the processor again. With `:max_attempts` each call
      may take `:processing_timeout_ms` from its beginning, as always. `:drain_timeout_ms` limits
      the whole stop; calls of `:dead_letter` come on top, and a second for a
      [handler](#module-handlers) that hangs. Changes by `update_options/2` take effect in the stop.
    * **Reads and writes during a stop.** Reads and deletes work until all partitions are done. A
      partition refuses writes as soon as its flush in flight is done, except from processors of the
      same buffer and from tasks started by them. The same stop processes their writes, in at most
      ten passes over all partitions.
    * **Leftovers of a stop.** Entries that a stop could not process go to `:dead_letter`, or are
      kept until a buffer of the same name and kind starts: see
      [Leftovers of a stop](#module-leftovers-of-a-stop).
    * **Equal terms.** The processor gets terms exactly as they were written.
    * **Responsive schedulers.** Work that takes longer than half a millisecond is done in slices.
      Only a single term is never split. To copy a key or a value takes as long as sending it in a
      message. Each call also hashes its key, and compares it with an equal one: for a binary of a
      megabyte that takes half a millisecond. So use the hash of a document as the key, and not the
      document. The process is charged for the time that large terms take. A slice of a list ends
      behind a large key, and behind a large value that nothing announced. The VM also copies a
      bitstring that starts within a byte, which is rare, each time its size is read.
    * **Large terms.** Large terms are copied without a lock, so other writers do not wait for the
      copy. Only the first large term after a while is copied under the lock, because its size is
      not known before the copy.
    * **Memory.** Memory depends on the number of entries, not of writes. For each waiting entry, a
      partition keeps at most four replaced or deleted values, and a few hundred more in all. A
      deleted entry takes about 50 bytes until the next flush.

  A buffer does not guarantee:

    * a bound of the memory while the processor cannot keep up, without `:max_size` or `:max_bytes`,
    * an order of the entries within a flush of a map or counter,
    * an order between partitions.

  ## Tables

  With `processing_batch_size: :table` the processor is called once per flush. It gets the name of
  an ETS table, which its process owns. The table is a `:set` with `keypos: 2` and contains records
  `{:entry, key, value, version, updates}`. `PartitionedBuffer.Queue` and
  `PartitionedBuffer.Counter` document their tables.

  The table is deleted when the processor returns. A processor can keep it: it renames the table
  with `:ets.rename/2` and gives it to another process with `:ets.give_away/3`. The next flush makes
  a new table with the usual name.

  ## Telemetry

  Events are emitted if the application `:telemetry` is present. Times are in native units. `buffer`
  is the name of the buffer, and `partition` the name of the partition, as `get_partition/3` returns
  it.

  | event | measurements | metadata |
  |---|---|---|
  | `[:partitioned_buffer, :partition, :start]` | `system_time` | `buffer`, `partition` |
  | `[:partitioned_buffer, :partition, :stop]` | `duration` | `buffer`, `partition`, `reason` |
  | `[:partitioned_buffer, :partition, :processing, :start]` | `system_time`, `monotonic_time` | `buffer`, `partition`, `trigger` |
  | `[:partitioned_buffer, :partition, :processing, :stop]` | `duration`, `monotonic_time`, `size` | `buffer`, `partition`, `trigger` |
  | `[:partitioned_buffer, :partition, :processing, :exception]` | `duration`, `monotonic_time` | `buffer`, `partition`, `trigger`, `kind`, `reason`, `stacktrace` |
  | `[:partitioned_buffer, :partition, :processing_failed]` | `system_time`, `count` | `buffer`, `partition`, `reason` |
  | `[:partitioned_buffer, :full, :start]` | `system_time` | `buffer` |
  | `[:partitioned_buffer, :full, :stop]` | `duration`, `refused`, `dropped`, `waited` | `buffer` |
  | `[:partitioned_buffer, :info]` | the numbers of `info/1` and its totals, `oldest_ms` 0 without an entry; with `:cluster` also `members`, `owned_slots` and `uncertain` | `buffer`, `kind` |

  With `:journal`, buffers also emit:

  | event | measurements | metadata |
  |---|---|---|
  | `[:partitioned_buffer, :journal, :replay]` | `entries`, `records`, `bytes`, `torn_bytes`, `damaged_bytes`, `damaged_records`, `duration` | `buffer`, `dir` |
  | `[:partitioned_buffer, :journal, :error]` | `lag_ms`, `unwritten` | `buffer`, `reason`, `operation` |
  | `[:partitioned_buffer, :journal, :recovered]` | `lag_ms`, `unwritten`, `duration` | `buffer` |
  | `[:partitioned_buffer, :journal, :rewrite]` | `entries`, `bytes`, `duration` | `buffer` |

  `replay` comes once for each start that finds its directory. `error` comes with the first failure, and
  no more before `recovered`. `full` has the metadata `reason: :journal` while writes are refused
  because of the journal, and `info` has `journal_lag_ms` and `journal_bytes`.

  The `processing` events span the work of a task on one flush. `size` is the number of entries that
  it processed, `trigger` is `:interval`, `:threshold`, `:full`, `:flush` or `:stop`. Their metadata
  also has a `telemetry_span_context`. The `reason` of `processing_failed` is the exit reason of the
  processor, `{exception, stacktrace}` after a raise, and `count` is the number of lost entries. With
  `:max_attempts`, `reason` is the reason of the failure, and `count` the number of entries that
  will be retried; a split has no such event. An interval without writes has no event.

  `full` spans the time from the first write that found no room until an eighth of `:max_size`, and of
  `:max_bytes`, is free and no writer waits. `refused` and `dropped` count entries, as the totals of `info/1` do, and
  `waited` counts the writers that waited for room. `emit_info/1` emits `info`. Buffers with
  `:cluster` also emit [events about their members](`m:PartitionedBuffer.Cluster#module-telemetry`).

  With `:max_attempts`, buffers also emit:

  | event | measurements | metadata |
  |---|---|---|
  | `[:partitioned_buffer, :partition, :batch, :start]` | `system_time`, `monotonic_time`, `size` | `buffer`, `partition`, `attempt` |
  | `[:partitioned_buffer, :partition, :batch, :stop]` | `duration`, `monotonic_time`, `size` | `buffer`, `partition`, `attempt`, `outcome`, `reason` |
  | `[:partitioned_buffer, :partition, :batch, :exception]` | `duration`, `monotonic_time`, `size` | `buffer`, `partition`, `attempt`, `outcome`, `kind`, `reason`, `stacktrace` |
  | `[:partitioned_buffer, :partition, :split]` | `count`, `limit` | `buffer`, `partition`, `reason` |
  | `[:partitioned_buffer, :partition, :retry]` | `count`, `superseded`, `delay` | `buffer`, `partition`, `reason`, `failures` |
  | `[:partitioned_buffer, :partition, :dead_letter]` | `count` | `buffer`, `partition`, `reason`, `handled` |

  A `batch` spans one call of the processor. `attempt` is 1 for a batch without failed entries;
  otherwise it is the attempt of the entry with the most failures. `outcome` is `:ok`, `:error`,
  `:partial`, `:snooze` or `:cancel`. A killed call has no `:stop`, but a `split` or a `retry`.

  `split` has the number of entries of a failed batch, and how many entries the next batch may have.
  `retry` has the number of entries that will be retried, the number of entries superseded by a
  newer write or a delete, the pause in milliseconds, which is 0 if the partition goes on, and the
  number of failures in a row. `handled` is whether `:dead_letter` took the entries.

  ### Handlers

  Telemetry handlers and log handlers run in processes that no writer and no other flush waits for,
  so a handler may write to the buffer or flush it:

  | event or log line | process of the handlers |
  |---|---|
  | `processing`, `batch`, `split`, `retry`, `dead_letter`, and `processing_failed` with `:max_attempts`; log lines about the processor and functions of the options | the task that works on the flush. The next flush of the partition waits for it |
  | `info`, log lines about options | the calling process |
  | `start` and `stop` of a partition, `full`, `processing_failed` without `:max_attempts`; log lines about a killed call, a task that cannot start, or a stop | the *emitter*, one process for each buffer |

  The emitter calls the handlers in the order in which the events come, a moment after the event.
  Times in measurements and log lines are those of the event. If 20,000 events are pending, the
  emitter drops the next ones until none is pending, and logs how many. A large event counts once for
  each kilobyte. A stop of the buffer waits for the pending handlers, at most a second; then it
  kills the emitter.

  Reports by OTP itself, for example about a dead process, run log handlers in the process that
  reports, such as the supervisor. So a log handler must not hang: let it send to another process.
  """

  alias PartitionedBuffer.API.{Flush, Sync}
  alias PartitionedBuffer.Buffer.{Hold, Lookup, Settings}
  alias PartitionedBuffer.Cluster.Requests
  alias PartitionedBuffer.{Native, Routing}
  alias PartitionedBuffer.Observe.{DefaultLogger, Info, Watch}

  @typedoc "The name of a buffer."
  @type buffer() :: atom()

  @doc """
  Starts a buffer, linked to the calling process.

  Takes the [start options](#module-start-options), and as `:module` the kind of the buffer:
  `PartitionedBuffer.Map`, `PartitionedBuffer.Queue` or `PartitionedBuffer.Counter`. The
  `start_link/1` of these modules adds `:module`. Returns the pid of the buffer's supervisor, or
  `{:error, {:already_started, pid}}` if the name is taken. Raises if an option is missing or
  invalid.

      iex> {:ok, _pid} =
      ...>   PartitionedBuffer.start_link(
      ...>     module: PartitionedBuffer.Map,
      ...>     name: :started_directly,
      ...>     processor: &Function.identity/1
      ...>   )
      iex> PartitionedBuffer.buffer_size(:started_directly)
      0
  """
  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(opts), do: PartitionedBuffer.API.Start.start_link(opts)

  @doc """
  Returns the child specification of a buffer, for a supervision tree.

  Takes the same options as `start_link/1`, which checks them when the buffer starts. The id is the
  name of the buffer, or this module if the options have no name. The type is `:supervisor`, so the
  supervisor waits for the stop without a limit.

      iex> processor = &Function.identity/1
      iex> options = [module: PartitionedBuffer.Map, name: :users, processor: processor]
      iex> PartitionedBuffer.child_spec(options)
      %{
        id: :users,
        start: {PartitionedBuffer, :start_link, [options]},
        type: :supervisor
      }
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts), do: PartitionedBuffer.Buffer.Supervisor.child_spec(__MODULE__, opts)

  @typedoc """
  An option of `stop/4`.
  """
  @type stop_option() :: {:leftovers, :dead_letter | :keep} | {:reason, any()} | {:timeout, timeout()}

  @doc """
  Processes the entries of a buffer and stops it, with these [guarantees](#module-guarantees).

  `buffer` is the name of the buffer or the pid of its supervisor. If the buffer is already
  stopping, the call waits for the end of that stop. Exits as `Supervisor.stop/3` does if the buffer
  is not running, or if the stop takes longer than `timeout` milliseconds; the stop then goes on.

  Options, also in place of `reason`, as in `stop(:users, leftovers: :keep)`:

    * `:leftovers` – what becomes of entries that the stop could not process. `:dead_letter`, the
      default, gives them to that function, and keeps them without it. `:keep` keeps them until a
      buffer of the same name and kind starts. Of several calls during a stop the first one counts.
      If the VM stops, they always go to `:dead_letter`.
    * `:reason`, `:timeout` – the same as the arguments.

  Raises an `ArgumentError` in a processor of the same buffer, and in a task started by one: the
  call would wait for the processor itself. An invalid timeout or option raises the same error as an
  invalid start option.

      iex> PartitionedBuffer.Map.start_link(name: :kept_doc, processor: &Function.identity/1)
      iex> PartitionedBuffer.stop(:kept_doc, leftovers: :keep)
      :ok
  """
  @spec stop(buffer() | pid(), any(), timeout(), [stop_option()]) :: :ok
  def stop(buffer, reason \\ :normal, timeout \\ :infinity, opts \\ []),
    do: PartitionedBuffer.Buffer.Supervisor.stop(buffer, reason, timeout, opts)

  @doc """
  Returns how many entries wait for the next flush, in all partitions.

  Raises an `ArgumentError` if the buffer is not running, a `RuntimeError` if it has 0 partitions.

      iex> PartitionedBuffer.Map.put(:doc, :key, 1)
      iex> PartitionedBuffer.buffer_size(:doc)
      1
  """
  @spec buffer_size(buffer()) :: non_neg_integer()
  def buffer_size(buffer) when is_atom(buffer) do
    case Native.size(buffer) do
      :not_running -> Routing.not_running!(buffer)
      {:elsewhere, size} -> size + buffer_size(Routing.owning_name(buffer))
      size -> size
    end
  end

  @doc """
  Changes options of a running buffer: `:processing_interval_ms`, `:processing_jitter_ms`,
  `:processing_timeout_ms`, `:processing_batch_size`, `:processing_batch_bytes`,
  `:processing_threshold`, `:max_size`, `:max_bytes`, `:when_full`, `:full_timeout_ms`,
  `:retry_backoff_ms`, `:drain_timeout_ms`, and `:max_attempts` and `:cluster` if the buffer was
  started with them. The list of `:cluster` has only the settings that change; `:slots` cannot.

  Omitted options keep their values. A shorter interval or jitter takes effect at once, a longer one
  after the scheduled tick; `:infinity` cancels that tick. A new batch size applies from the next
  flush or retry on. During a stop, `:drain_timeout_ms`, `:processing_timeout_ms`,
  `:retry_backoff_ms` and `:max_attempts` take effect in that stop. The call does not wait for a
  processor. The changes last until the supervisor of the buffer ends.

  Raises and changes nothing if an option is unknown or invalid, with the same error as a start.
  Logs a warning if a captured function does not exist.
  Raises an `ArgumentError` if the buffer is not running, a `RuntimeError` if it has 0 partitions.

      iex> PartitionedBuffer.update_options(:doc, processing_batch_size: 500)
      :ok
  """
  @spec update_options(buffer(), keyword()) :: :ok
  def update_options(buffer, opts) when is_atom(buffer) do
    if Lookup.cluster?(buffer),
      do: Requests.update_options!(buffer, opts),
      else: Settings.update!(buffer, opts)
  end

  @doc """
  Processes all entries now, and waits for the result.

  Returns `:ok` when the processor is done with every write that returned before the call; with
  `:max_attempts`, when each of those writes succeeded, or was superseded, deleted or given up.
  Returns `{:error, {:failed, count}}` if the processor failed: with `:max_attempts`, `count`
  entries failed or wait behind failed ones, and will be retried; otherwise they are lost or wait
  for the next flush. During a pause after a failure the call tries again at once. Returns
  `{:error, :paused}` if `pause/1` paused the buffer, and entries may be left. With `:cluster` it
  flushes the writes of this node, wherever their owner is, and returns `{:error, {:away, nodes}}` if
  these nodes may have some and cannot be reached. Concurrent calls share a flush. A call during a stop returns the result of the stop's work.

  Options:

    * `:timeout` – how many milliseconds to wait at most, or `:infinity`. The default is 60000.
      After this time the call returns `{:error, :timeout}`, and the flush goes on.
    * `:async` – with `true` the call returns `:ok` once the partitions have its request; if
      `pause/1` paused the buffer, they flush after `resume/1`.

  Raises an `ArgumentError` if the buffer is not running, or if a processor of the buffer calls it
  without `async: true`; a `RuntimeError` if the buffer has 0 partitions. An invalid option raises
  the same error as an invalid start option.

      iex> PartitionedBuffer.Map.put(:doc, :key, 1)
      iex> PartitionedBuffer.flush(:doc)
      :ok
      iex> PartitionedBuffer.buffer_size(:doc)
      0
  """
  @spec flush(buffer(), timeout: timeout(), async: boolean()) ::
          :ok | {:error, :timeout | :paused | {:failed, non_neg_integer()} | {:away, [node()]}}
  def flush(buffer, opts \\ []) when is_atom(buffer),
    do: if(Lookup.cluster?(buffer), do: Requests.flush(buffer, opts), else: Flush.flush(buffer, opts))

  @doc """
  Waits until the journal has every write and delete that returned before the call. The buffer has the
  option `:journal`.

  With `level: :synced`, the default, they survive the end of the machine: the device has them. With
  `level: :written` they survive the end of the VM. Callers that come together share one write and one
  sync. No scheduler is held.

  Returns `{:error, :timeout}` after `:timeout` milliseconds, 5000 unless given, or `{:error, posix}` if
  the file system refuses, for example `:enospc`; the buffer keeps all entries in memory then, and goes on
  trying. So `put` and `sync/1` together are a write that waits for the disk.

  Raises an `ArgumentError` if the buffer is not running or has no journal.
  """
  @spec sync(buffer(), level: :written | :synced, timeout: timeout()) ::
          :ok | {:error, :timeout | File.posix()}
  def sync(buffer, opts \\ []) when is_atom(buffer), do: Sync.sync(buffer, opts)

  @doc """
  Pauses a buffer: no call of the processor begins until `resume/1`. Use it while the sink is
  maintained.

  A call under way ends, and its outcome counts; a call that just begins is under way. Reads and
  writes go on, and the bound holds, so writers may have to wait for room. Intervals, thresholds and
  a full buffer call nothing. `flush/2` returns `{:error, :paused}`. If it waits already, it returns
  so once the call under way ended, unless that call was the last of its flush. Retries wait. Calls
  of `:dead_letter` with entries already given up still take place.

  The pause also survives the death of each process but the supervisor of the buffer. It ends with
  `resume/1`, with a stop, which processes all entries as always, or with the supervisor. During a
  stop the call changes nothing. To pause a paused buffer changes nothing either.

  The call waits for no process, so processors of the buffer may also call it. Raises an
  `ArgumentError` if the buffer is not running, a `RuntimeError` if it has 0 partitions.

      iex> PartitionedBuffer.pause(:doc)
      :ok
      iex> PartitionedBuffer.flush(:doc)
      {:error, :paused}
      iex> PartitionedBuffer.resume(:doc)
      :ok
  """
  @spec pause(buffer()) :: :ok
  def pause(buffer) when is_atom(buffer),
    do: if(Lookup.cluster?(buffer), do: Requests.pause!(buffer), else: Hold.pause!(buffer))

  @doc """
  Ends the pause of `pause/1`.

  A partition that missed a flush, or has entries of one in flight, goes on at once. A pause after a
  failure lasts as long as it would have. To resume a buffer that is not paused changes nothing.

  The call waits for no process. Raises as `pause/1` does.

      iex> PartitionedBuffer.resume(:doc)
      :ok
  """
  @spec resume(buffer()) :: :ok
  def resume(buffer) when is_atom(buffer),
    do: if(Lookup.cluster?(buffer), do: Requests.resume!(buffer), else: Hold.resume!(buffer))

  @doc """
  Returns the names of all running buffers of this VM, sorted. A buffer runs from its start to the
  end of its stop.

      iex> :doc in PartitionedBuffer.buffers()
      true
  """
  @spec buffers() :: [buffer()]
  def buffers, do: Lookup.buffers()

  @typedoc """
  The numbers of a buffer, as `info/1` returns them.
  """
  @type info() :: %{
          optional(:cluster) => PartitionedBuffer.Cluster.numbers(),
          kind: :map | :queue | :counter,
          size: non_neg_integer(),
          in_flight: non_neg_integer(),
          retrying: non_neg_integer(),
          bytes: non_neg_integer(),
          reclaiming: non_neg_integer(),
          max_size: pos_integer() | :infinity,
          max_bytes: pos_integer() | :infinity,
          oldest_ms: non_neg_integer() | nil,
          failing_ms: non_neg_integer(),
          waiting_writers: non_neg_integer(),
          paused?: boolean(),
          last_error: %{reason: atom() | String.t(), system_time: integer(), partition: atom()} | nil,
          totals: %{
            written: non_neg_integer(),
            coalesced: non_neg_integer(),
            stale: non_neg_integer(),
            deleted: non_neg_integer(),
            superseded: non_neg_integer(),
            processed: non_neg_integer(),
            failed: non_neg_integer(),
            given_up: non_neg_integer(),
            refused: non_neg_integer(),
            dropped: non_neg_integer()
          },
          journal: journal_info() | nil,
          partitions: [
            %{
              name: atom(),
              size: non_neg_integer(),
              in_flight: non_neg_integer(),
              state: :idle | :processing | :paused | :on_hold | :closed,
              limit: pos_integer() | nil,
              failures: non_neg_integer(),
              next_ms: non_neg_integer() | nil
            }
          ]
        }

  @typedoc "The state of a journal, in `t:info/0`."
  @type journal_info() :: %{
          dir: Path.t(),
          state: :ok | :behind | :failed,
          lag_ms: non_neg_integer(),
          unwritten: non_neg_integer(),
          written_ms_ago: non_neg_integer(),
          synced_ms_ago: non_neg_integer(),
          bytes: non_neg_integer(),
          segments: non_neg_integer(),
          replayed: non_neg_integer(),
          last_error:
            %{
              reason: File.posix() | pos_integer(),
              operation: :open | :write | :sync | :delete,
              system_time: integer()
            }
            | nil
        }

  @doc """
  Returns the numbers of a buffer: its entries, its delay and its totals. They show no keys and
  values.

  | key | meaning |
  |---|---|
  | `:kind` | `:map`, `:queue` or `:counter` |
  | `:size` | entries that wait for the next flush, as `buffer_size/1` returns |
  | `:in_flight` | flushed entries without an outcome; without `:max_attempts`, flushed entries that no processor got. A deleted entry counts until its flush reaches it |
  | `:retrying` | entries that failed and wait for their next attempt, among `:size` and `:in_flight`: of a queue with its order at the head of the flush. A split or a snooze alone does not count, and an entry in a batch does not |
  | `:bytes` | an estimate of the memory of the entries, in bytes. It falls as a flush progresses |
  | `:reclaiming` | an estimate of the bytes that no buffer needs and that are not free yet, of all buffers together; see `memory/0` |
  | `:max_size`, `:max_bytes` | the options |
  | `:oldest_ms` | an upper bound, in milliseconds, of the age of the oldest write without an outcome: the age of the first write of its flush, also after failures. A newer write inherits the age of a failed entry that it replaces. `nil` without an entry |
  | `:failing_ms` | how long the processor has been failing, in milliseconds: the time since the first of the failures in a row, splits included, of the partition where it is longest; 0 without failures, and in an empty partition. A success ends it; a snooze neither begins nor ends it |
  | `:waiting_writers` | processes that wait for room |
  | `:paused?` | whether `pause/1` paused the buffer; `false` during a stop |
  | `:last_error` | the last failure of a processor: `:reason`, an atom or the [text](#module-reasons) of another reason, `:system_time` in milliseconds, and the `:partition`; `nil` without a failure since the start. A snooze or a cancellation is no failure |
  | `:totals` | counts that only grow, from the first start of this name and kind in the VM on |
  | `:journal` | the [state of the journal](#info/1-the-journal); `nil` without one |
  | `:cluster` | only with this option: the [numbers of the member](`m:PartitionedBuffer.Cluster#module-numbers`). All others are then those of both of its stages, added up |
  | `:partitions` | for each partition its `:name`, `:size`, `:in_flight`, `:state`, `:limit`, `:failures` in a row, and `:next_ms` |

  The `:state` of a partition is `:processing` while its task runs, `:paused` after a failure or a
  snooze, `:on_hold` while `pause/1` keeps it from calls, `:closed` from the moment a stop makes it
  refuse writes, otherwise `:idle`. `:next_ms` is the time to the end of the pause, or else to the
  next tick. It is `nil` in a partition that is closed or on hold, and without a pause if
  `:processing_interval_ms` is `:infinity`.

  `:limit` is how many entries the next batch may have: the batch size, or fewer after
  [failures](#module-isolation). It is `nil` if a function or a table chooses the size and no
  failure does.

  ### The journal

  | key | meaning |
  |---|---|
  | `:dir` | its directory |
  | `:state` | `:ok`; `:behind` if the lag is above `max_lag_ms`; `:failed` while the file system refuses |
  | `:lag_ms` | the age of the oldest change that is not written, in milliseconds, or a little more |
  | `:unwritten` | the number of changed entries that are not written |
  | `:written_ms_ago`, `:synced_ms_ago` | the time since the last write, and the last sync, that succeeded, in milliseconds |
  | `:bytes`, `:segments` | the size of its files, and their number |
  | `:replayed` | the number of entries that a former VM left |
  | `:last_error` | the last failure: `:reason`, `:operation` (`:open`, `:write`, `:sync`, `:delete`), `:system_time` in milliseconds; or `nil` |

  ### The totals

  Each element of a list counts as a write.

  | total | meaning |
  |---|---|
  | `:written` | accepted writes |
  | `:coalesced` | accepted writes that replaced a waiting entry, or were added to it; of a counter also failed entries added to a waiting one |
  | `:stale` | writes of `PartitionedBuffer.Map.put_newer/5` and `put_all_newer/3` that were not accepted, since the present version was as high or higher |
  | `:deleted` | entries deleted while they waited |
  | `:superseded` | entries dropped in flight: a newer write replaced them, or they were deleted. Also leftovers of a map replaced by another one of their key, after a start with another partition count |
  | `:processed` | entries that the processor succeeded with; without `:max_attempts`, entries given to it |
  | `:given_up` | entries given up, counted after the call of `:dead_letter` |
  | `:failed` | failures of entries: an entry counts once for each attempt that failed. A split, a snooze, a cancellation and a stop that gives entries up do not count. Without `:max_attempts` failed entries are lost, and `:processed` counts them as well |
  | `:refused` | writes that found no room in time and raised a `PartitionedBuffer.FullError` or returned `{:error, :full}` |
  | `:dropped` | writes that found no room in time and were dropped, with `when_full: :drop_newest` |

  While nothing is written or processed, each entry is counted once:

      written - coalesced == size + in_flight + deleted + superseded + processed + given_up

  With a journal, `journal.replayed` is added to the left side: the entries that a former VM left are
  not written again.

  The call takes some microseconds for each partition, however many entries the buffer holds, and
  calls no process of the buffer. Raises an `ArgumentError` if the buffer is not running, a
  `RuntimeError` if it has 0 partitions.

      iex> PartitionedBuffer.Map.put(:doc, :key, 1)
      iex> %{size: 1, in_flight: 0, totals: totals} = PartitionedBuffer.info(:doc)
      iex> totals.written >= 1
      true
  """
  @spec info(buffer()) :: info()
  def info(buffer) when is_atom(buffer),
    do: if(Lookup.cluster?(buffer), do: Requests.info(buffer), else: Info.info(buffer))

  @doc """
  Emits the telemetry event `[:partitioned_buffer, :info]` with the numbers of `info/1`, for one
  buffer, or with `:all` for each running buffer.

  Returns `:ok` also if the buffer is not running, so `:telemetry_poller` can call it:

      {:telemetry_poller, measurements: [{PartitionedBuffer, :emit_info, [:all]}], period: 10_000}

      iex> PartitionedBuffer.emit_info(:all)
      :ok
  """
  @spec emit_info(buffer() | :all) :: :ok
  def emit_info(:all), do: Enum.each(buffers(), &emit_info/1)
  def emit_info(buffer) when is_atom(buffer), do: Info.emit(buffer, &info/1)

  @doc """
  Shows a page about a running buffer in the terminal, and replaces it once a second: its entries,
  the rates of writes, the failures, and a line for each partition. With `:all` the page has a line
  for each running buffer of this node: its entries and memory with their limits, `:oldest_ms` and
  `:failing_ms` of `info/1`, the rates, and its state. The first true line counts:

  | state | meaning |
  |---|---|
  | `closed` | a stop processes its last entries |
  | `on hold` | `pause/1` paused it |
  | `journal failed` | the file system refuses its journal |
  | `failing` | its processor fails |
  | `journal behind` | the lag of its journal is above `max_lag_ms` |
  | `full` | it has no room, or writers wait for room |
  | `paused` | a partition pauses after a snooze |
  | `processing` | a partition has a task |
  | `idle` | otherwise |
  | `not running`, `no partitions` | `info/1` raises |

  All values come from `info/1`. The call returns `:ok` when somebody presses Enter, after the last
  round, or when the buffer is no longer running; with `:all` it waits for the next one to start. Where
  nobody can press Enter, since the device is no terminal, it also ends with its process. In a
  terminal a buffer that ends shows the reason, and the call still waits for Enter.

  Log lines and other output that come between two pages stay above the next page. If more lines
  come than the page has empty lines above it, three to ten, the lines may have the rest of the old
  page at their right.

  Options:

    * `:interval` – milliseconds between two pages. The default is 1000.
    * `:rounds` – how many pages, or `:infinity`, the default. Enter has no effect with a number.
    * `:device` – where to print. The default is `:stdio`.
    * `:ansi` – whether a page replaces the one before, or comes below it. The default is
      `IO.ANSI.enabled?/0` of the node of the buffer, which may be false in a remote shell.

  Raises an `ArgumentError` if an option is unknown.
  """
  @spec watch(buffer() | :all, keyword()) :: :ok
  def watch(buffer, opts \\ []) when is_atom(buffer),
    do: Watch.run(buffer, [info: &info/1, buffers: &buffers/0] ++ opts)

  @doc """
  Attaches a logger to the events of all buffers. Call it at the start of the application.

  The library itself logs failures, pauses, and entries lost or given up. This logger adds:

  | event | level | line |
  |---|---|---|
  | `:full` | `:warning` | a buffer is full |
  | `:full` | `:level`, or `:warning` if writes were refused or dropped | the buffer has room again: for how long it was full, and how many writers waited |
  | `:dead_letter` | `:error` | `:dead_letter` took entries given up: their count and the reason |
  | `:cluster` | `:level` | the members of a buffer changed: their number, the slots that this node owns, and the nodes that joined or left |
  | `:cluster` | `:warning` | entries are sent again whose owner may have taken them; a stop handed entries over to another node; the clock of a node is not followed |
  | `:journal` | `:level`, or `:error` with damage | a start restored entries from a journal: their number |
  | `:journal` | `:error`, then `:level` | a journal cannot be written or synced: the operation and the reason; it works again |
  | `:processing` | `:level` | a flush: its size and duration |

  The lines show no keys, values or other terms of entries: see [Reasons](#module-reasons). Their
  Logger metadata are `buffer`, `partition`, `event` (`:full_start`, `:full_stop`, `:dead_letter`,
  `:cluster_members`, `:cluster_uncertain`, `:cluster_hand_over`, `:cluster_skew`,
  `:journal_replay`, `:journal_error`, `:journal_recovered` or `:processing_stop`), the numbers of the line, and the `slot` and the node `to`, if any.

  Options:

    * `:level` – the level of lines about normal work. The default is `:info`.
    * `:events` – which of `:full`, `:dead_letter`, `:cluster`, `:journal` and `:processing` to log, or `:all`.
      The default is all but `:processing`, which is a line for each flush.

  Returns `{:error, :already_exists}` if the logger is already attached, and
  `{:error, :no_telemetry}` if the application `:telemetry` is not present. Raises an
  `ArgumentError` if an option is invalid.

      iex> PartitionedBuffer.attach_default_logger(level: :debug)
      :ok
      iex> PartitionedBuffer.detach_default_logger()
      :ok
  """
  @spec attach_default_logger(
          level: Logger.level(),
          events: :all | [:full | :dead_letter | :cluster | :processing]
        ) ::
          :ok | {:error, :already_exists | :no_telemetry}
  def attach_default_logger(opts \\ []), do: DefaultLogger.attach(opts)

  @doc """
  Detaches the logger of `attach_default_logger/1`. Returns `{:error, :not_found}` if it is not
  attached.
  """
  @spec detach_default_logger() :: :ok | {:error, :not_found | :no_telemetry}
  def detach_default_logger, do: DefaultLogger.detach()

  @doc """
  Returns the memory allocated by the native library for all buffers together.

    * `:bytes` – the bytes of entries, indexes and all else, as requested from the VM's allocators.
    * `:environments` – the number of heaps that hold the copies of keys and values. Most of them
      hold some hundred copies. With 0 the library holds no terms.
    * `:reclaiming` – an estimate of the bytes that no buffer needs and that are not free yet. Above
      64 MB writers and processors help the thread that frees them.

  `:erlang.memory/0` includes this memory in `:system` and `:binary`. A thread frees unused memory
  some milliseconds later. An empty buffer keeps some kB for each partition until the VM ends, even
  when it is stopped.

      iex> %{bytes: bytes, reclaiming: reclaiming} = PartitionedBuffer.memory()
      iex> bytes > 0 and reclaiming >= 0
      true
  """
  @spec memory() :: %{
          bytes: non_neg_integer(),
          environments: non_neg_integer(),
          reclaiming: non_neg_integer()
        }
  def memory do
    {bytes, environments, reclaiming} = Native.memory()
    %{bytes: bytes, environments: environments, reclaiming: reclaiming}
  end

  @doc """
  Returns the number of the partition whose batch the calling processor has, from 0 on; `nil` outside
  of a processor. A function as `:dead_letter` has it as well.

  A processor has one batch of a partition at a time. So it can use the number to choose a connection,
  a shard of the sink or a producer that no other call uses.

      iex> PartitionedBuffer.processing_partition()
      nil
  """
  @spec processing_partition() :: non_neg_integer() | nil
  defdelegate processing_partition(), to: PartitionedBuffer.Partition.Runner, as: :partition

  @doc """
  Returns the name of the partition that a key or item is written to with this `:partition_key`.
  `nil` means none.

  Raises an `ArgumentError` if the buffer is not running, a `RuntimeError` if it has 0 partitions.

      iex> hashed = PartitionedBuffer.get_partition(:doc, &:erlang.phash2/1, :key)
      iex> PartitionedBuffer.get_partition(:doc, nil, :key) == hashed
      true
      iex> partition = PartitionedBuffer.get_partition(:doc, :all_to_one, :key)
      iex> partition in [:"Elixir.doc.0", :"Elixir.doc.1"]
      true
  """
  @spec get_partition(buffer(), any(), any()) :: atom()
  def get_partition(buffer, partition_key, key) when is_atom(buffer),
    do: Routing.partition_name(buffer, partition_key, key)
end
