-- mark, "in" or "out", ms that a node without a lease may still come back
-- -> "running": there are nodes; "half": there is the beginning of a database; "whole": there is one; "empty": there is none
-- The mark keeps nodes out. It is set where that fits: on the way in to an empty or half database, else to a whole one, for
-- a minute, as whoever reads may be killed.
for _, node in ipairs(redis.call('ZRANGEBYSCORE', p .. 'nodes', '-inf', now() - ARGV[3])) do
    end_node(node)
end
if redis.call('EXISTS', p .. 'nodes') == 1 then
    return 'running'
end
local mark = redis.call('GET', p .. 'migrating')
local found = 'empty'
if mark and string.find(mark, '^in') then
    found = 'half'
elseif redis.call('EXISTS', p .. 'users', p .. 'last-id', p .. 'pairs') > 0 then
    found = 'whole'
end
if found == 'whole' then
    redis.call('SET', p .. 'migrating', 'out ' .. ARGV[1], 'PX', 60000)
elseif ARGV[2] == 'in' then
    redis.call('SET', p .. 'migrating', 'in ' .. ARGV[1])
end
return found
