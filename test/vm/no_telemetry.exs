# Prints what the default logger does where there is no telemetry: neither the stand-in of the tests nor that of the system.
:code.del_path(:telemetry)
logger = PartitionedBuffer.Observe.DefaultLogger
IO.inspect({logger.attach([]), logger.detach()})
