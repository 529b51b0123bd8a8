-- mark, users, passwords, highest id ever given -> 1: the database is whole; 0: somebody else has changed it
-- mark -> 1: it has been read, and nobody was there meanwhile; 0: perhaps somebody was
local mark, whole = redis.call('GET', p .. 'migrating'), nil
if ARGV[2] then
    whole = mark == 'in ' .. ARGV[1]
        and redis.call('HLEN', p .. 'users') == tonumber(ARGV[2])
        and redis.call('HLEN', p .. 'passwords') == tonumber(ARGV[3])
    if whole then
        redis.call('SET', p .. 'last-id', ARGV[4])
    end
else
    whole = mark == 'out ' .. ARGV[1]
end
if whole then
    redis.call('DEL', p .. 'migrating')
end
return whole and 1 or 0
