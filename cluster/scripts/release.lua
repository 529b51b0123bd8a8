-- node, id, ms that its mail may still come (0: no) -> number of the event, 0 if there was nothing to release
if ARGV[3] ~= '0' then
    redis.call('SADD', p .. 'settling:' .. ARGV[2], ARGV[1])
    redis.call('PEXPIRE', p .. 'settling:' .. ARGV[2], ARGV[3])
end
return put_offline(ARGV[1], ARGV[2])
