-- node, epoch, id, ms in which the node may still write its mail (0: none), the node's clock
-- -> number of the event; 0 if there was nothing to release, or if the request is older than a rejoin
hear_clock(ARGV[5])
if redis.call('HGET', p .. 'epochs', ARGV[1]) ~= ARGV[2] then
    return 0
end
if ARGV[4] ~= '0' then
    begin_settling(ARGV[1], ARGV[3], ARGV[4])
end
return put_offline(ARGV[1], ARGV[3])
