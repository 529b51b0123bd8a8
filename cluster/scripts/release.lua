-- node, epoch, id, ms that its mail may still come (0: no), the node's clock
-- -> number of the event, 0 if there was nothing to release, or this was asked for before a rejoin, which knows better
hear_clock(ARGV[5])
if redis.call('HGET', p .. 'epochs', ARGV[1]) ~= ARGV[2] then
    return 0
end
if ARGV[4] ~= '0' then
    redis.call('SADD', p .. 'settling:' .. ARGV[3], ARGV[1])
    redis.call('PEXPIRE', p .. 'settling:' .. ARGV[3], ARGV[4])
end
return put_offline(ARGV[1], ARGV[3])
